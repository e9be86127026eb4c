"""Folders of splits or of groups are no classes, and what is no image by its kind is no bad image."""

import os
import re

import pytest

from cbd_fast.errors import InputError
from cbd_fast.shards.sources.image_folder import folder_source


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def names_of(root, notes=None, **options):
    source = folder_source({"train": root}, **options)
    found = sorted(image.name for image in source.images())
    if notes is not None:
        notes += source.notes
    return found


@pytest.mark.parametrize(
    ("splits", "remedy"),
    [
        (("train", "validation", "test"), "--train {0}/train --val {0}/validation --test {0}/test"),
        (("Training", "Testing"), "--train {0}/Training --test {0}/Testing"),
        (("train2017", "val2017"), "--train {0}/train2017 --val {0}/val2017"),
        (("train_images", "test_images", "extra"), "--train {0}/train_images --test {0}/test_images"),
        (("train", "trainval", "val", "test"), "--train {0}/train --val {0}/val --test {0}/test"),
        (("train",), "--train {0}/train"),
        (("TrainSet",), "--train {0}/TrainSet"),
    ],
)
def test_folders_of_splits_are_no_classes(tmp_path, splits, remedy):
    touch(tmp_path, *(f"{split}/{name}/1.jpg" for split in splits for name in ("cat", "dog")))
    expected = f"its folders are splits .*{re.escape(remedy.format(tmp_path))}$"
    with pytest.raises(InputError, match=expected):
        folder_source({"train": tmp_path})
    with pytest.raises(InputError, match=expected):
        folder_source({"train": tmp_path / splits[0], "test": tmp_path})
    with pytest.raises(InputError, match=expected):
        folder_source({"train": tmp_path}, is_nested=True)
    assert names_of(tmp_path / splits[0]) == ["cat/1.jpg", "dog/1.jpg"]


def test_folders_of_splits_that_hold_images_are_no_classes_either(tmp_path):
    touch(tmp_path, "train/1.jpg", "test/2.jpg")
    with pytest.raises(InputError, match="its folders are splits"):
        folder_source({"train": tmp_path})


def test_classes_that_have_the_word_of_a_split_in_their_names(tmp_path):
    names = ["bus/1.jpg", "test tube/1.jpg", "train/1.jpg", "train station/1.jpg"]
    touch(tmp_path, *names)
    assert names_of(tmp_path) == sorted(names)


def test_groups_of_classes_are_no_classes(tmp_path):
    groups = ["animals/cat/1.jpg", "animals/dog/1.jpg", "plants/oak/1.jpg", "plants/.x"]
    touch(tmp_path, *groups, "plants/readme.txt")
    with pytest.raises(InputError, match=r"hold no images but folders, as animals does \(cat, dog\).*add --nested"):
        folder_source({"train": tmp_path})
    assert names_of(tmp_path, is_nested=True) == groups[:3]
    assert names_of(tmp_path / "animals") == ["cat/1.jpg", "dog/1.jpg"]
    touch(tmp_path, "plants/0.jpg")  # images among the folders: these are classes
    assert len(names_of(tmp_path)) == 4


def test_one_folder_in_each_class_is_as_some_datasets_have_it(tmp_path):
    touch(tmp_path, "n01/images/1.jpg", "n02/images/1.jpg")
    assert len(names_of(tmp_path)) == 2


def test_splits_inside_classes_are_refused(tmp_path):
    touch(tmp_path, *(f"{name}/{split}/1.jpg" for name in ("cat", "dog") for split in ("train", "test")))
    for is_nested in (False, True):
        with pytest.raises(InputError, match=r"cat: holds folders of splits \(test, train\) in the folder of a class"):
            folder_source({"train": tmp_path}, is_nested=is_nested)


def test_files_that_are_no_images_are_passed_over_and_counted(tmp_path):
    odd = ["Thumbs.db", "desktop.ini", "1.xmp", "1.JSON", "IMG_1.AAE", "labels.csv", "README", "README.md", "x/2.txt"]
    hidden = [".DS_Store", "._1.jpg", ".thumbnails/1.jpg", "@eaDir/1.jpg/SYNO_THUMB.jpg", "__MACOSX/._1.jpg"]
    images = ["a/1.jpg", "a/2", "a/x/3.heic", "a/x/4.dat"]
    touch(
        tmp_path, *images, *(f"a/{name}" for name in [*odd, *hidden, "more.zip"]), "7.jpg", "classes.txt", ".DS_Store"
    )
    notes = []
    assert names_of(tmp_path, notes) == images
    assert notes[0] == "train: 1 files that are in no class folder are not taken, such as 7.jpg"
    assert notes[1].startswith("train: 9 files that are no images are passed over (")
    assert notes[2:] == ["train: 1 archives are passed over, such as a/more.zip; unpack them if they hold images"]


def test_class_names_in_two_unicode_forms(tmp_path):
    touch(tmp_path, "train/caf\u00e9/1.jpg", "train/ant/1.jpg", "test/cafe\u0301/2.jpg")
    source = folder_source({split: tmp_path / split for split in ("train", "test")})
    assert source.classes == ["ant", "caf\u00e9"]
    assert [(image.name, image.label) for image in source.images() if image.split == "test"] == [
        ("cafe\u0301/2.jpg", 1)
    ]
    touch(tmp_path, "train/cafe\u0301/1.jpg")
    with pytest.raises(InputError, match=r"has a name that another has, too, in another Unicode form"):
        folder_source({"train": tmp_path / "train"})


def test_a_class_folder_that_is_a_link_to_nothing_is_named(tmp_path):
    touch(tmp_path, "a/1.jpg")
    os.symlink(tmp_path / "nowhere", tmp_path / "b")
    with pytest.raises(InputError, match="b: is a link to nothing"):
        folder_source({"train": tmp_path})
