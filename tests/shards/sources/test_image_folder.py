import os

import pytest

from cbd_fast.errors import InputError
from cbd_fast.shards.sources.image_folder import folder_source


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
