import argparse
import csv
import io
import os
import tarfile
import time

import numpy as np
import pytest

from cbd_fast.cli.shard_options import add_source_options
from cbd_fast.registry import SOURCES
from cbd_fast.shards.index import INDEX_DTYPE, write_entries
from cbd_fast.shards.manifest import read_manifest
from cbd_fast.shards.sources.image_folder import folder_source
from cbd_fast.shards.writing.dataset_writer import write_dataset
from cbd_fast.shards.writing.duplicates import find_duplicates
from cbd_fast.shards.writing.index_in_place import index_dataset
from cbd_fast.shards.writing.options import ShardSize, WriteOptions
from cbd_fast.shards.writing.tar_writer import tar_member
from cbd_fast.shards.writing.work_items import WorkItem, entries_path
from tests.helpers import write as write_file

NAMES = {  # number of the piece for each image
    "train/a/0": 0,
    "train/a/1": 1,
    "train/a/2": 1,  # a copy of the same class
    "train/b/3": 2,
    "train/b/4": 3,
    "test/a/5": 0,  # in train, too
    "test/b/6": 1,  # in train, of another class
    "test/b/7": 4,
    "test/a/8": 4,  # a copy of another class
    "test/b/9": 5,
}


def write(root, out, num_workers=1):
    source = folder_source({split: root / split for split in ("train", "test")})
    return write_dataset(source, out, WriteOptions(size=ShardSize(num_images=3)), num_workers=num_workers)


def rows_of(path):
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        return [tuple(row.values()) for row in csv.DictReader(file)]


@pytest.fixture
def with_copies(pieces, tmp_path):
    for name, piece in NAMES.items():
        write_file(tmp_path / "in" / f"{name}.jpg", pieces[piece])
    return tmp_path / "in"


def test_equal_images_are_counted_and_listed(with_copies, tmp_path):
    written = write(with_copies, tmp_path / "out")
    notes = read_manifest(tmp_path / "out").notes
    assert written.manifest.notes == notes
    between, train, test = notes
    assert between.startswith("warning: 2 images of test are in train too, byte for byte (1 with another label); all")
    assert "test/a/5.jpg = train/a/0.jpg" in between
    assert train == "train: 1 images are copies of others of the same class"
    assert test.startswith("warning: test: 2 images are equal to one of another class, so their labels contradict")
    groups = {}
    for group, split, label, name in rows_of(tmp_path / "out" / "duplicates.csv"):
        groups.setdefault(group, set()).add(f"{split}/{name}")
        assert label == str("ab".index(name[0]))
    expected = [{0, 5}, {1, 2, 6}, {7, 8}]
    assert sorted(map(sorted, groups.values())) == sorted(
        sorted(f"{name}.jpg" for name in NAMES if int(name[-1]) in numbers) for numbers in expected
    )


def test_nothing_is_said_where_there_is_nothing(pieces, tmp_path):
    for number, piece in enumerate(pieces[:6]):
        write_file(tmp_path / "in" / ("train", "test")[number % 2] / "a" / f"{number}.jpg", piece)
    assert write(tmp_path / "in", tmp_path / "out").manifest.notes == []
    assert not (tmp_path / "out" / "duplicates.csv").exists()


def test_odd_names_are_listed(pieces, tmp_path):
    for split, name in (("train", os.fsdecode(b"a/\xff.jpg")), ("test", "a/\x1b[31m.jpg")):
        write_file(tmp_path / "in" / split / name, pieces[0])
    (note,) = write(tmp_path / "in", tmp_path / "out").manifest.notes
    assert r"test/a/\x1b[31m.jpg = train/a/\udcff.jpg" in note
    names = {name for *_, name in rows_of(tmp_path / "out" / "duplicates.csv")}
    assert names == {r"a/\x1b[31m.jpg", os.fsdecode(b"a/\xff.jpg")}


def test_in_shards_of_somebody_else_they_are_told_and_nothing_is_listed(pieces, tmp_path):
    for split, pair in (("train", (0, 1)), ("test", (1, 2))):
        with tarfile.open(tmp_path / f"{split}-0.tar", "w") as tar:
            for piece in pair:
                for name, data in ((f"{split}{piece}.jpg", pieces[piece]), (f"{split}{piece}.cls", b"0")):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    parser = argparse.ArgumentParser()
    add_source_options(parser, "webdataset", is_out_required=False)
    source = SOURCES["webdataset"].open(parser.parse_args([str(tmp_path)]))
    notes = index_dataset(source, tmp_path, WriteOptions(), num_workers=1).manifest.notes
    (note,) = [note for note in notes if note.startswith("warning")]
    assert note.startswith("warning: 1 images of test are in train too, byte for byte; such as test/test")
    assert "test1" in note
    assert "train1" in note
    assert not (tmp_path / "duplicates.csv").exists()


def shard(folder, number, images, crc32=7):
    """A shard whose entries all say the same crc32."""
    item = WorkItem(split="train", number=number, file=f"train-{number:06d}.tar", start=0, stop=len(images))
    entries, content = [], b""
    for position, data in enumerate(images):
        entries.append((len(content) + 512, len(data), number, 0, 8, 8, crc32))
        content += b"".join(tar_member(f"{position:09d}.jpg", data))
    (folder / item.file).write_bytes(content)
    write_entries(entries_path(folder, item), np.array(entries, INDEX_DTYPE))
    return item


def test_bytes_decide_not_checksums(tmp_path):
    items = [shard(tmp_path, 0, [b"one", b"two", b"three"]), shard(tmp_path, 1, [b"two", b"one.", b"six"])]
    groups = find_duplicates(tmp_path, tmp_path, items)
    assert [[(copy.item, copy.position) for copy in group] for group in groups] == [[(0, 1), (1, 0)]]


def test_millions_of_images_take_seconds(tmp_path):
    rng = np.random.default_rng(0)
    items = []
    for number in range(20):
        item = WorkItem(split="train", number=number, file="none", start=0, stop=100_000)
        entries = np.zeros(100_000, INDEX_DTYPE)
        entries["size"] = rng.integers(100_000, 120_000, len(entries))
        entries["crc32"] = number * len(entries) + np.arange(len(entries))
        write_entries(entries_path(tmp_path, item), entries)
        items.append(item)
    start = time.process_time()
    assert find_duplicates(tmp_path, tmp_path, items) == []
    assert time.process_time() - start < 2
