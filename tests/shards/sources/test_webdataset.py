import json
import tarfile
from contextlib import closing

import pytest
import webdataset

from cbd_fast.errors import InputError
from cbd_fast.shards.sources.tar_splits import find_tars, split_tars
from cbd_fast.shards.sources.webdataset import TarLayout, webdataset_source
from cbd_fast.shards.writing.catalog import Catalog
from tests.helpers import encoded
from tests.shards.sources.helpers import cataloged, listed, write_tar


@pytest.fixture
def image(photos):
    return encoded(photos[0][:20, :30])


def webdataset_tars(folder, globs):
    return split_tars(folder, find_tars(folder, bool(globs), []), globs, {}, [])


def test_stock_shards(tmp_path, image):
    with webdataset.ShardWriter(str(tmp_path / "train-%06d.tar"), maxcount=2, verbose=0) as writer:
        for number in range(3):
            writer.write({"__key__": f"dir.x/{number}", "jpg": image, "cls": number % 2, "json": {"n": number}})
    assert listed(tmp_path) == [
        ("train", "train-000000.tar/dir.x/0.jpg", "0"),
        ("train", "train-000000.tar/dir.x/1.jpg", "1"),
        ("train", "train-000001.tar/dir.x/2.jpg", "0"),
    ]
    images = list(webdataset_source(tmp_path, TarLayout()).images())
    assert all(p.read() == image for p in images)
    assert [json.loads(p.metadata) for p in images] == [{"n": 0}, {"n": 1}, {"n": 2}]


def test_labels_and_extensions_of_all_sorts(tmp_path, image):
    nested = json.dumps({"ann": {"cat": "bee"}}).encode()
    write_tar(
        tmp_path / "a.tar",
        [
            ("x.txt", b"cat\n"),
            ("x.image.JPEG", image),
            ("__meta__.json", b"{}"),
            ("README", b"no key"),
            ("y.png", image),
            ("y.txt", b"dog"),
        ],
    )
    assert listed(tmp_path) == [("train", "a.tar/x.image.JPEG", "cat"), ("train", "a.tar/y.png", "dog")]
    write_tar(tmp_path / "a.tar", [("x.tiff", image), ("x.json", nested), ("x.cls", b"3")])
    assert listed(tmp_path) == [("train", "a.tar/x.tiff", "3")]
    assert listed(tmp_path, label_key="ann.cat") == [("train", "a.tar/x.tiff", "bee")]


def test_names_of_classes_from_a_file(tmp_path, image):
    write_tar(tmp_path / "a.tar", [("x.jpg", image), ("x.txt", b"dog"), ("y.jpg", image), ("y.txt", b"0")])
    names = tmp_path / "classes.txt"
    names.write_text("cat\ndog\n")
    assert [label for _, _, label in listed(tmp_path, classes_file=names)] == [1, 0]
    names.write_text("cat\n")
    classes, [odd, (_, label, _)] = cataloged(tmp_path, classes_file=names)
    assert (classes, label) == (["cat"], 0)
    assert odd[:2] == ("a.tar/x.jpg", -1)
    assert "label 'dog' is not among the 1 classes" in odd[2]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("x.jpg", b"1")], "has no label, neither .cls nor .txt"),
        ([("x.jpg", b"1"), ("x.json", b'{"label": 3}')], r"its .json has \['label'\]: choose one with --label-key"),
        ([("x.jpg", b"1"), ("x.json", b"{")], "x.json is not JSON"),
        ([("x.jpg", b"1"), ("x.txt", b"a\nb")], "not one label"),
        ([("x.jpg", b"1"), ("x.cls", b"")], "not one label"),
        ([("x.jpg", b"1"), ("x.png", b"1"), ("x.cls", b"0")], "beside x.jpg there are other images"),
        ([("x.jpg", b"1"), ("x.cls", b"9" * 20)], "label 99999999999999999999 is no number of a class"),
        ([("x.jpg", b"1"), ("x.jpg", b"1"), ("x.cls", b"0")], "x.jpg is there twice"),
    ],
)
def test_samples_that_are_not_a_image_with_a_label(tmp_path, members, message):
    write_tar(tmp_path / "a.tar", members)
    source = webdataset_source(tmp_path, TarLayout())
    with closing(Catalog(tmp_path / "catalog")) as catalog, pytest.raises(InputError, match=message):
        catalog.add(source.images(), source.classes)


def test_several_images_and_none(tmp_path, image):
    sample = [("x.jpg", image), ("x.seg.png", b"1"), ("x.cls", b"0")]
    write_tar(tmp_path / "a.tar", [("README.txt", b"hello"), *sample])
    source = webdataset_source(tmp_path, TarLayout())
    assert [p.name for p in source.images()] == ["a.tar/x.jpg"]
    assert source.notes[-1] == "a.tar: 1 samples without an image are passed over, such as README.txt"
    assert listed(tmp_path, image="seg.png") == [("train", "a.tar/x.seg.png", "0")]


def test_names_with_underscores_are_images(tmp_path, image):
    names = ["__b.jpg", "__c__.jpg", "dir/__d__"]
    write_tar(tmp_path / "a.tar", [(name, image) for name in names] + [("__meta__", b"{}"), ("__b__", b"{}")])
    write_tar(tmp_path / "a.tar", [m for n in ("__b", "__c__") for m in ((f"{n}.jpg", image), (f"{n}.cls", b"0"))])
    assert [name for _, name, _ in listed(tmp_path)] == ["a.tar/__b.jpg", "a.tar/__c__.jpg"]


def test_what_is_behind_the_end_of_a_tar_is_not_lost_without_a_word(tmp_path, image):
    write_tar(tmp_path / "a.tar", [("x.jpg", image), ("x.cls", b"0"), ("y.jpg", image), ("y.cls", b"0")])
    whole = (tmp_path / "a.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        header = tar.getmembers()[2].offset
    for damaged in (whole + whole, whole[:header] + b"x" + whole[header + 1 :]):
        (tmp_path / "a.tar").write_bytes(damaged)
        with pytest.raises(InputError, match="goes on after its end at byte"):
            listed(tmp_path)


def test_a_label_key_that_is_not_there(tmp_path):
    write_tar(tmp_path / "a.tar", [("x.jpg", b"1"), ("x.json", b'{"b": {"c": [1]}}')])
    for key in ("a", "b", "b.c", "b.c.d"):
        with pytest.raises(InputError, match=rf"no label under '{key}' in its .json, which has \['b'\]"):
            cataloged(tmp_path, label_key=key)


def test_which_tars_are_which_split(tmp_path):
    names = ["train/0.tar", "train/1.tar", "imagenet-validation-0.tar", "train_and/x_test_0.tar"]
    for name in names:
        write_tar(tmp_path / name, [])
    assert webdataset_tars(tmp_path, {}) == {
        "train": ["train/0.tar", "train/1.tar"],
        "val": ["imagenet-validation-0.tar"],
        "test": ["train_and/x_test_0.tar"],
    }
    globs = {"train": "train/*", "test": "imagenet-val*.tar"}
    assert webdataset_tars(tmp_path, globs) == {
        "train": ["train/0.tar", "train/1.tar"],
        "test": ["imagenet-validation-0.tar"],
    }
    with pytest.raises(InputError, match="no tar fits --val 'nothing"):
        webdataset_tars(tmp_path, {"train": "train/*", "val": "nothing*"})
    with pytest.raises(InputError, match="no tars for training"):
        webdataset_tars(tmp_path, {"test": "*x_test*"})
    with pytest.raises(InputError, match=r"1 tars fit several patterns, such as train/1\.tar"):
        webdataset_tars(tmp_path, {"train": "train/*", "test": "*1.tar"})
    (tmp_path / "train" / "2.tar.gz").touch()
    with pytest.raises(InputError, match=r"compressed shards such as train/2\.tar\.gz"):
        webdataset_tars(tmp_path, {})
    with pytest.raises(InputError, match="no such folder"):
        webdataset_tars(tmp_path / "none", {})


def test_a_damaged_tar_is_named(tmp_path, image):
    write_tar(tmp_path / "a.tar", [("x.jpg", image), ("x.cls", b"0")])
    whole = (tmp_path / "a.tar").read_bytes()
    for damaged in (b"x" * 2000, b""):
        (tmp_path / "a.tar").write_bytes(damaged)
        with pytest.raises(InputError, match=r"a\.tar: not a whole tar"):
            listed(tmp_path)
    (tmp_path / "a.tar").write_bytes(whole[:600])
    with pytest.raises(InputError):
        listed(tmp_path)
