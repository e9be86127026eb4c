"""What is not ours in a folder of tars stays as it is, and two commands are never in one folder at once."""

import os
import shutil

import numpy as np
import pytest

from cbd_fast.errors import InputError, RunError
from cbd_fast.folder_lock import locked_folder
from cbd_fast.shards.long_tail import LongTail
from cbd_fast.shards.manifest import read_manifest
from cbd_fast.shards.sources.webdataset import TarLayout, webdataset_source
from cbd_fast.shards.writing.dataset_writer import write_dataset
from cbd_fast.shards.writing.index_in_place import index_dataset
from cbd_fast.shards.writing.options import WriteOptions
from tests.helpers import encoded
from tests.shards.sources.helpers import labelled, write_tar


@pytest.fixture
def tars(tmp_path, photos):
    image = encoded(photos[0][:16, :16])
    write_tar(tmp_path / "train-0.tar", labelled([0, 1, 2] * 3, image=image))
    return tmp_path


def index(folder, max_bad=0.01):
    source = webdataset_source(folder, TarLayout())
    return index_dataset(source, folder, WriteOptions(max_bad_fraction=max_bad), num_workers=1)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".tar"}


OTHERS = (
    "faiss.index.npy",
    "train.index.backup.npy",
    "x.index.npy.cbd_fast-partial",
    "val.index.npy",
    "my.index.1.npy",
)


def test_files_of_others_stay_as_they_are(tars):
    for name in OTHERS:
        np.save(tars / "x", np.arange(5.0))
        (tars / "x.npy").rename(tars / name)
    (tars / "train.index.7.npy").write_bytes(b"no array")
    before = contents(tars)
    index(tars)
    shutil.copy(tars / "train.index.npy", tars / "train.index.3.npy")  # of a quarantine that was killed
    (tars / "train.index.4.npy.cbd_fast-partial").touch()
    index(tars)
    after = contents(tars)
    assert {path: after.pop(path) for path in before} == before
    assert sorted(path.name for path in after) == ["dataset.json", "skipped.csv", "train.index.npy"]


@pytest.mark.parametrize("name", ["dataset.json", "train.index.npy", "skipped.csv", ".cbd_fast-work"])
@pytest.mark.parametrize("kind", ["text", "json", "link", "folder", "empty"])
def test_what_would_be_overwritten_is_refused(tars, tmp_path_factory, name, kind):
    path = tars / name
    if kind == "folder" and name == ".cbd_fast-work":
        pytest.skip("a folder of this name is ours")
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        elsewhere = tmp_path_factory.mktemp("elsewhere")
        (elsewhere / "file").write_text("mine")
        path.symlink_to(elsewhere)
    else:
        path.write_text({"text": "mine", "json": '{"classes": ["a"], "splits": {}}', "empty": ""}[kind])
    before = contents(tars)
    with pytest.raises(InputError, match="is somebody else's"):
        index(tars)
    assert contents(tars) == before
    assert path.is_symlink() == (kind == "link")
    if kind == "link":
        assert (elsewhere / "file").read_text() == "mine"
        assert os.listdir(elsewhere) == ["file"]


def test_an_index_of_an_older_version_is_replaced(tars):
    manifest = index(tars).manifest
    (tars / "dataset.json").write_text(
        '{"format": "cbd_fast shards", "format_version": 1, "recipe": {"source": "webdataset in place"}}'
    )
    np.save(tars / "train.index.npy", np.zeros(3, [("label", np.int64)]))
    assert index(tars).manifest == manifest


def test_one_writer_at_a_time(tars, monkeypatch):
    monkeypatch.setattr("cbd_fast.folder_lock.LOCK_SECONDS", 0)
    index(tars)
    before = contents(tars)
    message = rf"\(process {os.getpid()}\) is writing there"
    with locked_folder(tars), pytest.raises(InputError, match=message):  # as verify --quarantine has it
        index(tars)
    assert contents(tars) == before


def test_bad_labels_count_as_bad_images_and_are_all_listed(tars, photos):
    image = encoded(photos[0][:16, :16])
    labels = [number % 3 for number in range(94)]
    write_tar(tars / "train-1.tar", labelled(labels, image=image))
    bad = [("x0.jpg", image), ("x1.jpg", image), ("x1.cls", b""), ("x2.jpg", image), ("x2.cls", b"-1")]
    write_tar(tars / "train-2.tar", [*bad, ("x3.jpg", image), ("x3.cls", b"0"), ("x3.json", b'{"a": "\xe9"}')])
    with pytest.raises(RunError, match=r"4 of 107 images cannot be used, and 1 are allowed .*x0\.jpg"):
        index(tars)
    listed = (tars / ".cbd_fast-work" / "skipped.csv").read_text().splitlines()
    assert len(listed) == 5
    written = index(tars, max_bad=0.04)
    assert [skip.name for skip in written.skipped] == [f"train-2.tar/x{number}.jpg" for number in range(4)]
    assert [skip.label for skip in written.skipped] == [-1] * 4
    assert read_manifest(tars).num_skipped == 4
    assert written.manifest.splits["train"].class_counts == [35, 34, 34]
    assert not (tars / ".cbd_fast-work").exists()


def test_bad_labels_are_left_out_of_shards_that_are_made_anew(tars, tmp_path_factory, photos):
    write_tar(tars / "train-1.tar", labelled([0, -1, 2, "unknown"], image=encoded(photos[0][:16, :16])))
    out = tmp_path_factory.mktemp("out") / "shards"
    source = webdataset_source(tars, TarLayout())
    with pytest.raises(RunError, match=r"2 of 13 images cannot be used, and 0 are allowed"):
        write_dataset(source, out, WriteOptions(), num_workers=1)
    options = WriteOptions(max_bad_fraction=0.2, tail=LongTail(imbalance=2, num_val_per_class=1))
    written = write_dataset(source, out, options, num_workers=1)
    assert {split: record.class_counts for split, record in written.manifest.splits.items()} == {
        "train": [4, 2, 2],
        "val": [0, 1, 1],
    }
    assert {skip.name: skip.label for skip in written.skipped} == {
        "train-1.tar/0001.jpg": -1,
        "train-1.tar/0003.jpg": -1,
    }
    again = write_dataset(source, out, options, num_workers=2)
    assert (again.is_new, sorted(map(str, again.skipped))) == (False, sorted(map(str, written.skipped)))
