import shutil

import pytest

from cbd_fast.errors import InputError
from cbd_fast.shards.sources.tiny_imagenet import tiny_imagenet_source


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def listed(source):
    """Split, name and label of all images."""
    return sorted((image.split, image.name, image.label) for image in source.images())


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
