import json
import os
import shutil

import pytest

from cbd_fast.errors import InputError
from cbd_fast.shards.sources.image_folder import folder_source, list_source, tiny_imagenet_source
from cbd_fast.shards.sources.inaturalist import inaturalist_source


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def listed(source):
    """Split, name and label of all images."""
    return sorted((image.split, image.name, image.label) for image in source.images())


def test_folder_lists_every_visible_file_below_each_class(tmp_path):
    train, test = tmp_path / "train", tmp_path / "test"
    touch(train / "b" / "1.jpg", train / "a" / "deep" / "2.png", train / "a" / "1.jpg", train / "a" / ".hidden")
    touch(test / "b" / "x.jpg")
    source = folder_source({"train": train, "test": test})
    assert source.classes == ["a", "b"]
    assert listed(source) == [
        ("test", "b/x.jpg", 1),
        ("train", "a/1.jpg", 0),
        ("train", "a/deep/2.png", 0),
        ("train", "b/1.jpg", 1),
    ]


def test_images_know_their_file_and_size(tmp_path, monkeypatch):
    touch(tmp_path / "train" / "a" / "1.jpg")
    monkeypatch.chdir(tmp_path)
    (image,) = folder_source({"train": type(tmp_path)("train")}).images()
    assert (image.path, image.num_bytes) == (str(tmp_path / "train" / "a" / "1.jpg"), 1)
    assert image.read() == b"x"


def test_odd_names_and_dangling_links_are_listed(tmp_path):
    odd = ["spaced name.jpg", "line\nbreak.jpg", "ünïcode.jpg", "many.dots.in.it.jpg", "noextension"]
    touch(*(tmp_path / "train" / "a" / name for name in odd))
    os.symlink(tmp_path / "nowhere", tmp_path / "train" / "a" / "link.jpg")
    images = {image.name: image for image in folder_source({"train": tmp_path / "train"}).images()}
    assert sorted(images) == sorted(f"a/{name}" for name in [*odd, "link.jpg"])
    assert images["a/link.jpg"].num_bytes is None


def test_links_that_go_in_circles_are_followed_once(tmp_path):
    touch(tmp_path / "train" / "a" / "1.jpg", tmp_path / "train" / "a" / "b" / "2.jpg")
    touch(tmp_path / "train" / "c" / "3.jpg")
    os.symlink(tmp_path / "train" / "a", tmp_path / "train" / "a" / "b" / "again")
    os.symlink(tmp_path / "train", tmp_path / "train" / "a" / "b" / "up")  # to the other classes
    source = folder_source({"train": tmp_path / "train"})
    assert [name for _, name, _ in listed(source)] == ["a/1.jpg", "a/b/2.jpg", "c/3.jpg"]


def test_class_names_that_cannot_be_written_are_refused(tmp_path):
    touch(tmp_path / "train" / os.fsdecode(b"caf\xe9") / "1.jpg")
    with pytest.raises(InputError, match="no printable UTF-8 name; rename it"):
        folder_source({"train": tmp_path / "train"})


def test_bad_folders_are_refused(tmp_path):
    train, test = tmp_path / "train", tmp_path / "test"
    with pytest.raises(InputError, match="no such folder"):
        folder_source({"train": train})
    train.mkdir()
    with pytest.raises(InputError, match="no class folders"):
        folder_source({"train": train})
    touch(train / "b" / "1.jpg", test / "c" / "1.jpg")
    with pytest.raises(InputError, match=r"1 classes that .*train lacks, such as 'c'"):
        folder_source({"train": train, "test": test})
    (test / "c" / "1.jpg").unlink()
    (test / "c").rename(test / "b")
    with pytest.raises(InputError, match="hold no files"):
        list(folder_source({"train": train, "test": test}).images())


def test_list_of_paths_and_labels(tmp_path):
    (tmp_path / "train.txt").write_bytes(b"train/n01/a b.JPEG 1\r\n\ntrain/n00/c.JPEG 0\n")
    (tmp_path / "test.txt").write_text("val/n00/d.JPEG\t0\n", encoding="utf-8-sig")
    touch(tmp_path / "root" / "train" / "n01" / "a b.JPEG")
    source = list_source(tmp_path / "root", {"train": tmp_path / "train.txt", "test": tmp_path / "test.txt"})
    assert source.classes == ["n00", "n01"]  # the folders name them
    expected = [("test", "val/n00/d.JPEG", 0), ("train", "train/n00/c.JPEG", 0), ("train", "train/n01/a b.JPEG", 1)]
    images = list(source.images())
    assert sorted((p.split, p.name, p.label) for p in images) == expected
    sizes = {image.name: image.num_bytes for image in images}
    assert (sizes["train/n01/a b.JPEG"], sizes["train/n00/c.JPEG"]) == (1, None)


def test_classes_of_a_list(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text("mixed/a.jpg 0\nmixed/b.jpg 1\n")
    assert list_source(tmp_path, {"train": path}).classes == ["0", "1"]  # one folder for both
    path.write_text("x/a.jpg 0\ny/b.jpg 0\nz/c.jpg 1\n")
    assert list_source(tmp_path, {"train": path}).classes == ["0", "1"]
    names = tmp_path / "classes.txt"
    names.write_text("abbey\nairport terminal\n\n")
    assert list_source(tmp_path, {"train": path}, names).classes == ["abbey", "airport terminal"]
    names.write_text("abbey\n")
    with pytest.raises(InputError, match=r"names 1 classes, but .* labels up to 1"):
        list_source(tmp_path, {"train": path}, names)
    names.write_text("abbey\nabbey\n")
    with pytest.raises(InputError, match="each once"):
        list_source(tmp_path, {"train": path}, names)


@pytest.mark.parametrize("line", ["a.jpg", "a.jpg cat", "a.jpg -1", " 3", "a\0b.jpg 1", "a.jpg 99999999999"])
def test_bad_lines_of_a_list_are_named(tmp_path, line):
    (tmp_path / "train.txt").write_text(f"ok.jpg 0\n{line}\n")
    with pytest.raises(InputError, match=r"train\.txt: line 2: "):
        list_source(tmp_path, {"train": tmp_path / "train.txt"})


def test_a_label_that_only_the_test_list_has_is_refused(tmp_path):
    (tmp_path / "train.txt").write_text("a.jpg 0\n")
    (tmp_path / "test.txt").write_text("b.jpg 1\n")
    source = list_source(tmp_path, {"train": tmp_path / "train.txt", "test": tmp_path / "test.txt"})
    with pytest.raises(InputError, match=r"'b\.jpg' has label 1, but .* only labels up to 0"):
        list(source.images())
    with pytest.raises(InputError, match="No such file"):
        list_source(tmp_path, {"train": tmp_path / "none.txt"})


def test_one_file_has_one_name(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text(f"./a//x.jpg 0\nb/../a/y.jpg 0\n{tmp_path}/a/z.jpg 0\n")
    names = [name for _, name, _ in listed(list_source(tmp_path, {"train": path}))]
    assert names == ["a/x.jpg", "a/y.jpg", "a/z.jpg"]


def test_an_empty_list_is_refused(tmp_path):
    (tmp_path / "train.txt").write_text("\n")
    with pytest.raises(InputError, match="lists no images"):
        list_source(tmp_path, {"train": tmp_path / "train.txt"})


def test_a_folder_that_cannot_be_listed_is_not_taken_for_empty(tmp_path, monkeypatch):
    touch(tmp_path / "a" / "sub" / "1.jpg", tmp_path / "a" / "2.jpg")
    scandir = os.scandir

    def forbidden(path):  # root may read everything, so the system's refusal is played
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    with pytest.raises(InputError, match=r"sub: cannot be listed \(Permission denied\)"):
        listed(folder_source({"train": tmp_path}))


def annotations(images, species, change=None):
    """A file of the competitions' form: images as (id, file, category), species as (category, name)."""
    form = {
        "info": {"year": 2018},
        "images": [{"id": i, "file_name": file, "width": 8, "height": 8, "license": 1} for i, file, _ in images],
        "licenses": [{"id": 1, "name": "CC BY", "url": ""}],
        "annotations": [{"id": i, "image_id": i, "category_id": c} for i, _, c in reversed(images)],
        "categories": [{"id": c, "name": name, "supercategory": "Aves"} for c, name in species],
    }
    return form | (change or {})


def test_inaturalist(tmp_path):
    categories = [(7, "Larus"), (3, "Anas")]
    train = [(11, "train_val2018/Aves/7/a.jpg", 7), (12, "train_val2018/Aves/3/b.jpg", 3)]
    (tmp_path / "train.json").write_text(json.dumps(annotations(train, categories)))
    (tmp_path / "val.json").write_text(json.dumps(annotations([(20, "train_val2018/Aves/3/c.jpg", 3)], categories)))
    source = inaturalist_source(tmp_path, {"train": tmp_path / "train.json", "test": tmp_path / "val.json"})
    assert source.classes == ["Anas", "Larus"]  # in the order of their ids
    assert listed(source) == [
        ("test", "train_val2018/Aves/3/c.jpg", 0),
        ("train", "train_val2018/Aves/3/b.jpg", 0),
        ("train", "train_val2018/Aves/7/a.jpg", 1),
    ]
    assert "test: the published val" in source.notes[0]


def test_species_of_equal_names_are_told_apart(tmp_path):
    (tmp_path / "t.json").write_text(json.dumps(annotations([(1, "a.jpg", 0)], [(0, "Gull"), (1, "Gull")])))
    assert inaturalist_source(tmp_path, {"train": tmp_path / "t.json"}).classes == ["0 Gull", "1 Gull"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations": []}, "has no 'annotations'"),
        ({"categories": []}, "has no 'categories'"),
        ({"images": [{"id": 1}]}, "no 'file_name' of type str"),
        ({"images": [{"id": 9, "file_name": "x.jpg"}]}, "image 9 .* has no annotation"),
        ({"images": []}, "is the file whole"),
        ({"annotations": [{"image_id": 1, "category_id": 5}]}, "unknown category 5"),
        ({"annotations": 2 * [{"image_id": 1, "category_id": 0}]}, "several annotations"),
        ({"annotations": [{"image_id": 2**70, "category_id": 0}]}, "more than 64 bits"),
    ],
)
def test_bad_annotations_are_named(tmp_path, change, message):
    path = tmp_path / "train.json"
    path.write_text(json.dumps(annotations([(1, "a.jpg", 0)], [(0, "Gull")], change)))
    with pytest.raises(InputError, match=message):
        list(inaturalist_source(tmp_path, {"train": path}).images())


def test_json_that_is_cut_off_is_refused(tmp_path):
    path = tmp_path / "train.json"
    path.write_text(json.dumps(annotations([(1, "a.jpg", 0)], [(0, "Gull")]))[:-40])
    with pytest.raises(InputError, match="not whole JSON"):
        list(inaturalist_source(tmp_path, {"train": path}).images())


def test_tiny_imagenet(tmp_path):
    (tmp_path / "wnids.txt").write_text("n02\nn01\n")
    (tmp_path / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn02\ttailed frog\nn99\tother\n")
    touch(tmp_path / "train" / "n01" / "images" / "n01_0.JPEG", tmp_path / "train" / "n02" / "images" / "n02_0.JPEG")
    (tmp_path / "train" / "n01" / "n01_boxes.txt").touch()
    touch(tmp_path / "val" / "images" / "val_0.JPEG")
    (tmp_path / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn01\t0\t32\t44\t62\n")
    source = tiny_imagenet_source(tmp_path)
    assert source.classes == ["n02 tailed frog", "n01 goldfish, Carassius auratus"]
    assert listed(source) == [
        ("test", "val/images/val_0.JPEG", 1),
        ("train", "train/n01/images/n01_0.JPEG", 1),
        ("train", "train/n02/images/n02_0.JPEG", 0),
    ]
    (tmp_path / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn07\n")
    with pytest.raises(InputError, match=r"line 1: .* is not a file and a class"):
        list(source.images())
    shutil.rmtree(tmp_path / "train" / "n01")
    with pytest.raises(InputError, match="no such folder"):
        list(source.images())
