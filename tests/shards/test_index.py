import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbd_fast.errors import InputError
from cbd_fast.shards import index as index_module
from cbd_fast.shards.index import INDEX_DTYPE, ClassIndex, write_entries, write_index


def entries_with(labels) -> np.ndarray:
    entries = np.zeros(len(labels), INDEX_DTYPE)
    entries["label"] = labels
    entries["offset"] = np.arange(len(labels))
    return entries


def test_an_entry_has_32_bytes():
    assert INDEX_DTYPE.itemsize == 32  # 14 million images: 448 MB


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(10, 12))
def test_starts_are_those_of_a_plain_search(labels, num_classes):
    labels = np.sort(np.array(labels, np.uint32))
    index = ClassIndex.from_entries(entries_with(labels), num_classes)
    np.testing.assert_array_equal(index.starts, np.searchsorted(labels, np.arange(num_classes + 1)))
    np.testing.assert_array_equal(index.counts, np.bincount(labels, minlength=num_classes))


@given(st.lists(st.lists(st.integers(0, 4), max_size=12), min_size=1, max_size=5))
def test_written_entries_are_grouped_by_class_and_mapped(tmp_path_factory, labels_by_shard):
    folder = tmp_path_factory.mktemp("index")
    parts = []
    for shard, labels in enumerate(labels_by_shard):
        entries = entries_with(labels)
        entries["shard"] = shard
        parts.append(folder / f"{shard}.npy")
        np.save(parts[-1], entries)
    counts = write_index(folder / "index.npy", parts, 5)
    everything = np.concatenate([np.load(part) for part in parts])
    index = ClassIndex.open(folder / "index.npy", 5)
    assert isinstance(index.entries, np.memmap) or not len(everything)
    assert index.counts.tolist() == counts.tolist() == np.bincount(everything["label"], minlength=5).tolist()
    np.testing.assert_array_equal(index.entries, np.sort(everything, order=["label", "shard", "offset"]))


def test_large_indexes_are_read_in_pieces(monkeypatch, tmp_path):
    entries = entries_with([0, 0, 2, 2, 2, 3, 5])
    entries["width"] = [1, 0, 1, 1, 0, 1, 0]
    np.save(tmp_path / "index.npy", entries)
    for num_entries in (1, 2, 100):
        monkeypatch.setattr(index_module, "PIECE_ENTRIES", num_entries)
        index = ClassIndex.open(tmp_path / "index.npy", 7)
        assert index.starts.tolist() == [0, 2, 2, 5, 6, 6, 7, 7]
        assert index.quarantined.tolist() == [1, 4, 6]
        assert index.labels(np.arange(7)).tolist() == entries["label"].tolist() == index.entries["label"].tolist()


def test_an_index_is_there_whole_or_not_at_all(tmp_path):
    np.save(tmp_path / "part.npy", entries_with([0, 0, 1]))
    path, parts = tmp_path / "index.npy", [tmp_path / "part.npy"]
    assert write_index(path, parts, 2).tolist() == [2, 1]
    before = path.read_bytes()
    np.save(tmp_path / "part.npy", entries_with([0, 7]))  # no such class: the error comes while the file is written
    with pytest.raises(ValueError, match="could not be broadcast"):
        write_index(path, parts, 2)
    with pytest.raises(InputError):
        ClassIndex.open(tmp_path / "none.npy", 2)
    assert path.read_bytes() == before
    write_entries(path, entries_with([1]))
    assert np.load(path).tolist() == entries_with([1]).tolist()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["index.npy", "part.npy"]


def test_next_in_class_goes_round():
    index = ClassIndex.from_entries(entries_with([0, 0, 0, 1]), 2)
    assert [index.next_in_class(position) for position in range(4)] == [1, 2, 0, 3]


def test_what_is_no_index_is_refused(tmp_path):
    path = tmp_path / "index.npy"
    with pytest.raises(InputError, match="not a readable index"):
        ClassIndex.open(path, 3)
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match="not a readable index"):
        ClassIndex.open(path, 3)
    np.save(path, np.zeros(3))
    with pytest.raises(InputError, match="float64"):
        ClassIndex.open(path, 3)
    np.save(path, np.array([{}]), allow_pickle=True)
    with pytest.raises(InputError, match="not a readable index"):
        ClassIndex.open(path, 3)
