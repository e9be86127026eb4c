"""Shards that were made here, indexed together: numbers mean the same classes, or it is an error."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from cbd_fast.errors import InputError
from cbd_fast.shards.sources.base import Source, SourceImage
from cbd_fast.shards.sources.webdataset import TarLayout, webdataset_source
from cbd_fast.shards.writing.dataset_writer import write_dataset
from cbd_fast.shards.writing.index_in_place import index_dataset
from cbd_fast.shards.writing.options import WriteOptions
from tests.helpers import encoded
from tests.shards.sources.helpers import cataloged, labelled, labels, problems, write_tar


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Makes shards of four images of each class once, and gives a copy."""
    root = tmp_path_factory.mktemp("made")
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(buffer, "PNG")

    def images(split, classes):
        for label, name in enumerate(classes):
            for number in range(4):
                data = buffer.getvalue()
                yield SourceImage(split=split, name=f"{name}/{number}.png", label=label, num_bytes=len(data), data=data)

    def make(folder, names, classes=None, split="train"):
        cached = root / "-".join([*names, str(classes), split])
        if not cached.exists():
            source = Source(
                kind="made",
                classes=classes or list(names),
                images=lambda: iter([*images("train", names), *(images(split, names) if split != "train" else ())]),
            )
            write_dataset(source, cached, WriteOptions(), num_workers=1)
        return shutil.copytree(cached, folder)

    return make


def test_names_travel_and_are_compared(made, tmp_path):
    made(tmp_path / "a", ["cat", "dog"])
    assert cataloged(tmp_path / "a")[0] == ["cat", "dog"]
    made(tmp_path / "b", ["cat", "dog", "eel"])
    assert cataloged(tmp_path)[0] == ["cat", "dog", "eel"]
    made(tmp_path / "c", ["ant", "dog"])
    with pytest.raises(InputError, match=r"class 0 is 'cat' in .*b/dataset\.json, but 'ant' in .*c/dataset\.json"):
        cataloged(tmp_path)
    names = tmp_path / "names.txt"
    names.write_text("dog\neel\nant\ncat\n")
    of_images = labels(tmp_path, classes_file=names)
    for name in ("a", "b", "c"):
        expected = {"a": {3, 0}, "b": {3, 0, 1}, "c": {2, 0}}[name]
        assert {label for image, label in of_images.items() if image.startswith(name)} == expected
    names.write_text("dog\ncat\neel\n")
    assert set(problems(tmp_path, classes_file=names).values()) == {
        f"label '0 (ant)' is not among the 3 classes of {names}"
    }


def test_numbers_without_names_must_be_as_many(made, tmp_path):
    made(tmp_path / "a", ["x", "y"], ["0", "1"])
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert cataloged(tmp_path)[0] == ["0", "1"]
    made(tmp_path / "c", ["x", "y", "z"], ["0", "1", "2"])
    with pytest.raises(InputError, match=r"c/dataset\.json has 3 classes and .* 2, all without names"):
        cataloged(tmp_path)
    shutil.rmtree(tmp_path / "c")
    made(tmp_path / "c", ["cat", "dog"])
    with pytest.raises(InputError, match=r"c/dataset\.json names its classes, .* has only numbers"):
        cataloged(tmp_path)


def test_shards_without_their_manifest_tell_by_the_folders_of_their_images(made, tmp_path):
    for name, classes in (("a", ["cat", "dog"]), ("b", ["ant", "dog"])):
        (made(tmp_path / name, classes) / "dataset.json").unlink()
    with pytest.raises(InputError, match=r"class 0 is 'cat' in a/train-0+\.tar, but 'ant' in b/train"):
        cataloged(tmp_path)
    for name in ("a", "b"):  # side by side
        (tmp_path / name / "train-000000.tar").rename(tmp_path / f"train-{name}.tar")
    with pytest.raises(InputError, match="the folders that their images came from"):
        cataloged(tmp_path)
    shutil.rmtree(tmp_path / "b")
    (tmp_path / "train-b.tar").unlink()
    assert cataloged(tmp_path)[0] == ["0", "1"]


def test_numbers_of_strangers_beside_names_of_ours(made, tmp_path):
    made(tmp_path / "a", ["cat", "dog"])
    write_tar(tmp_path / "train-x.tar", labelled([0, 1]))
    assert len(problems(tmp_path)) == 2
    assert "nothing says what a number here means" in problems(tmp_path)["train-x.tar/0000.jpg"]
    write_tar(tmp_path / "train-x.tar", labelled(["dog", "cat"]))
    assert {name: label for name, label in labels(tmp_path).items() if "x" in name} == {
        "train-x.tar/0000.jpg": 1,
        "train-x.tar/0001.jpg": 0,
    }


def test_splits_are_those_of_the_manifest(made, tmp_path):
    folder = made(tmp_path / "a", ["cat", "dog"], split="test")
    manifest = json.loads((folder / "dataset.json").read_text())
    for split in ("train", "test"):
        (folder / f"{split}-000000.tar").rename(folder / f"odd-{split[1]}.tar")
        manifest["splits"][split]["shards"][0]["file"] = f"odd-{split[1]}.tar"
    (folder / "dataset.json").write_text(json.dumps(manifest))
    assert sorted(labels(tmp_path)) == sorted(
        f"a/odd-{letter}.tar/{number:09d}.png" for letter in "re" for number in range(8)
    )


def test_a_list_of_the_same_name_that_is_somebody_elses_is_not_looked_at(tmp_path):
    write_tar(tmp_path / "train-0.tar", labelled([0, 1]))
    for text in ("{", "[]", '{"classes": ["a"]}', "\0" * 10):
        (tmp_path / "dataset.json").write_text(text)
        assert cataloged(tmp_path)[0] == ["0", "1"]
    (tmp_path / "dataset.json").write_text('{"format": "cbd_fast shards", "format_version": 2}')
    with pytest.raises(InputError, match="not a manifest of shards"):
        cataloged(tmp_path)


def test_folders_of_strangers_that_were_indexed_with_names(photos, tmp_path):
    image = encoded(photos[0][:16, :16])
    for name, classes in (("a", "cat\ndog\n"), ("b", "ant\ndog\n")):
        write_tar(tmp_path / "all" / name / "train-0.tar", labelled([0, 1, 1], image=image))
        (tmp_path / name).write_text(classes)
        folder = tmp_path / "all" / name
        source = webdataset_source(folder, TarLayout(classes_file=tmp_path / name))
        index_dataset(source, folder, WriteOptions(), num_workers=1)
    with pytest.raises(InputError, match=r"class 0 is 'cat' in a/train-0\.tar, but 'ant' in b/train-0\.tar"):
        cataloged(tmp_path / "all")
    assert cataloged(tmp_path / "all", classes_file=tmp_path / "a")[0] == ["cat", "dog"]
    write_tar(tmp_path / "all" / "b" / "train-0.tar", labelled(["cat", "dog"], "txt", image=image))
    shutil.rmtree(tmp_path / "all" / "a")
    assert cataloged(tmp_path / "all")[0] == ["cat", "dog"]  # these labels are names


def test_folders_in_the_json_of_strangers_are_no_classes(tmp_path):
    for name in ("a", "b"):
        members = [
            member
            for number in range(2)
            for member in (
                (f"x{number}.jpg", b""),
                (f"x{number}.cls", b"%d" % number),
                (f"x{number}.json", json.dumps({"path": f"{name}{number}/1.jpg"}).encode()),
            )
        ]
        write_tar(tmp_path / f"train-{name}.tar", members)
    assert cataloged(tmp_path)[0] == ["0", "1"]
