"""Indexes that somebody else wrote: every entry is checked while the index is opened."""

import errno
import io
import mmap
import os
import pickle
import struct

import numpy as np
import pytest

from cbd_fast.errors import InputError
from cbd_fast.shards import index as index_module
from cbd_fast.shards.index import INDEX_DTYPE, ClassIndex, is_index, write_entries, write_index
from cbd_fast.shards.reader import ShardReader


def entries_of(labels) -> np.ndarray:
    """Images of 100 bytes, one behind the other."""
    entries = np.zeros(len(labels), INDEX_DTYPE)
    entries["label"], entries["size"], entries["width"], entries["height"] = labels, 100, 30, 20
    entries["offset"] = 512 + 1024 * np.arange(len(labels))
    return entries


def set_row(row, **values):
    def change(entries):
        for column, value in values.items():
            entries[column][row] = value
        return entries

    return change


ODD = [
    ({"label": 3}, "has a label that is none of the 3 classes"),
    ({"label": 2**32 - 1}, "has a label that is none of the 3 classes"),
    ({"label": 0}, "is not sorted by label"),
    ({"shard": 1}, "has a shard that is none of the 1"),
    ({"shard": 2**32 - 1}, "has a shard that is none of the 1"),
    ({"offset": 2**63}, "outside its shard"),
    ({"offset": 2**64 - 1}, "outside its shard"),
    ({"offset": 2**64 - 100}, "outside its shard"),  # its end is 0 once more
    ({"offset": 0}, "outside its shard"),
    ({"offset": 511}, "outside its shard"),
    ({"offset": 2**63, "width": 0, "height": 0}, "outside its shard"),  # quarantined
    ({"size": 0}, "empty or has more than"),
    ({"size": 2**32 - 1}, "empty or has more than"),
    ({"size": 2**29}, "outside its shard"),
    ({"width": 60_000, "height": 60_000}, "of more than 178,956,970 pixels"),
    ({"width": 2**32 - 1, "height": 2**32 - 1}, "of more than"),
    ({"width": 2**31, "height": 2}, "of more than"),  # 0 in 32 bits
    ({"width": 0}, "without pixels"),
    ({"height": 0}, "without pixels"),
]


@pytest.mark.parametrize(("values", "message"), ODD, ids=[str(values) for values, _ in ODD])
@pytest.mark.parametrize("row", [14, 18])
def test_an_odd_row_is_named(forge, row, values, message):
    folder = forge(index=set_row(row, **values))
    with pytest.raises(InputError, match=rf"train\.index\.npy: row {row} .*{message} .*make the shards again"):
        ShardReader(folder, "train")


def test_rows_are_numbered_across_pieces(monkeypatch):
    limits = np.array([1 << 20], np.uint64)
    for size in (1, 3, 7):
        monkeypatch.setattr(index_module, "PIECE_ENTRIES", size)
        for row in range(1, 9):
            entries = entries_of([0, 0, 1, 1, 1, 2, 2, 4, 4])
            assert ClassIndex.from_entries(entries, 5, limits).starts.tolist() == [0, 2, 5, 7, 7, 9]
            entries["size"][row] = 0
            with pytest.raises(ValueError, match=f"^row {row} has an image that is empty"):
                ClassIndex.from_entries(entries, 5, limits)
            entries = entries_of([1] * 9)
            entries["label"][row] = 0
            with pytest.raises(ValueError, match=f"^row {row} is not sorted by label"):
                ClassIndex.from_entries(entries, 5)


def test_unsorted_rows_of_equal_counts_are_refused(forge):
    def swap(entries):
        entries[[3, 18]] = entries[[18, 3]]
        return entries

    with pytest.raises(InputError, match="row 4 is not sorted by label"):
        ShardReader(forge(index=swap), "train")


def test_the_last_byte_of_a_shard_may_be_an_image_s():
    entries = entries_of([0])
    for num_bytes, is_inside in ((611, False), (612, True)):
        limits = np.array([num_bytes], np.uint64)
        if is_inside:
            assert len(ClassIndex.from_entries(entries, 1, limits)) == 1
        else:
            with pytest.raises(ValueError, match="outside its shard"):
                ClassIndex.from_entries(entries, 1, limits)


def saved(array, **options) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def zipped(array) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, array)
    return buffer.getvalue()


def with_header(text: bytes, version=1, num_bytes=64) -> bytes:
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + bytes(num_bytes)


def descr(shape="(2,)", order="False", columns=INDEX_DTYPE.descr) -> bytes:
    return f"{{'descr': {columns!r}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()


ENTRIES = entries_of([0, 0, 1, 2])
WRONG_FILES = {
    "zip": zipped(ENTRIES),
    "column": saved(ENTRIES.reshape(-1, 1)),
    "matrix": saved(np.asfortranarray(ENTRIES.reshape(2, 2))),
    "fortran": with_header(descr(order="True")),
    "objects": saved(np.array([{}, 1], object), allow_pickle=True),
    "object column": with_header(descr(columns=[*INDEX_DTYPE.descr[:-1], ("crc32", "|O")])),
    "pickle": pickle.dumps(ENTRIES),
    "floats": saved(np.zeros(4)),
    "big end": saved(ENTRIES.astype(INDEX_DTYPE.newbyteorder(">"))),
    "other columns": saved(ENTRIES[["offset", "size"]].copy()),
    "scalar": saved(ENTRIES[0]),
    "version 2": with_header(descr(), version=2),
    "version 9": with_header(descr(), version=9),
    "many rows": with_header(descr("(9223372036854775807,)")),
    "too many rows": with_header(descr("(10**99,)")),
    "rows below 0": with_header(descr("(-2,)")),
    "few rows": with_header(descr("(1,)")),
    "no rows": with_header(descr("(0,)")),
    "long header": with_header(descr() + b" " * 60_000),
    "nested header": with_header(b"(" * 1000 + b")" * 1000),
    "minus header": with_header(b"-" * 1000 + b"1"),
    "code": with_header(b"__import__('os').abort()"),
    "no dictionary": with_header(b"[1]"),
    "text": b"nothing",
    "empty": b"",
    "cut off": saved(ENTRIES)[:-1],
    "cut header": saved(ENTRIES)[:40],
    "longer": saved(ENTRIES) + b"\0",
    "nul in header": with_header(b"\0" * 100),
    "not latin": with_header("{'déscr': \u0000}".encode("latin-1")),
}


@pytest.mark.parametrize("data", WRONG_FILES.values(), ids=WRONG_FILES)
def test_files_that_are_no_index_are_refused(tmp_path, data):
    path = tmp_path / "train.index.npy"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"train\.index\.npy: ") as refused:
        ClassIndex.open(path, 3)
    assert "make the shards again" in str(refused.value)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 700


def test_pipes_and_folders_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "none"):
        with pytest.raises(InputError, match="not a readable index"):
            ClassIndex.open(path, 3)
        assert not is_index(path)


def test_an_index_is_told_from_other_arrays(tmp_path):
    write_entries(tmp_path / "ours.npy", ENTRIES)
    np.save(tmp_path / "faiss.index.npy", np.zeros((4, 8), np.float32))
    (tmp_path / "link.npy").symlink_to("ours.npy")
    assert [is_index(tmp_path / name) for name in ("ours.npy", "faiss.index.npy", "link.npy")] == [True, False, False]


def test_where_files_cannot_be_mapped_they_are_read(photo_shards, tmp_path, monkeypatch):
    expected = np.load(photo_shards / "train.index.npy")
    np.save(tmp_path / "part.npy", ENTRIES)
    mapped = write_index(tmp_path / "mapped.npy", [tmp_path / "part.npy"], 3)

    class NoMap(mmap.mmap):
        def __new__(cls, *arguments, **options):
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    monkeypatch.setattr(mmap, "mmap", NoMap)
    shards = ShardReader(photo_shards, "train")
    np.testing.assert_array_equal(shards.index.entries, expected)
    np.testing.assert_array_equal(shards.entries([3, 1]), expected[[3, 1]])
    assert shards.index.starts.tolist() == [0, 12, 17, 19]
    assert write_index(tmp_path / "read.npy", [tmp_path / "part.npy"], 3).tolist() == mapped.tolist()
    assert (tmp_path / "read.npy").read_bytes() == (tmp_path / "mapped.npy").read_bytes()
