import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbd_fast.errors import InputError
from cbd_fast.shards import index as index_module
from cbd_fast.shards.index import INDEX_DTYPE, ClassIndex, write_index


def rows_with(labels) -> np.ndarray:
    rows = np.zeros(len(labels), INDEX_DTYPE)
    rows["label"] = labels
    rows["offset"] = np.arange(len(labels))
    return rows


def test_a_row_has_32_bytes():
    assert INDEX_DTYPE.itemsize == 32  # 14 million images: 448 MB


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(10, 12))
def test_starts_are_those_of_a_plain_search(labels, num_classes):
    labels = np.sort(np.array(labels, np.uint32))
    index = ClassIndex.from_rows(rows_with(labels), num_classes)
    np.testing.assert_array_equal(index.starts, np.searchsorted(labels, np.arange(num_classes + 1)))
    np.testing.assert_array_equal(index.counts, np.bincount(labels, minlength=num_classes))


@given(st.lists(st.lists(st.integers(0, 4), max_size=12), min_size=1, max_size=5))
def test_written_rows_are_grouped_by_class_and_mapped(tmp_path_factory, labels_by_shard):
    folder = tmp_path_factory.mktemp("index")
    parts = []
    for shard, labels in enumerate(labels_by_shard):
        rows = rows_with(labels)
        rows["shard"] = shard
        parts.append(folder / f"{shard}.npy")
        np.save(parts[-1], rows)
    counts = write_index(folder / "index.npy", parts, 5)
    everything = np.concatenate([np.load(part) for part in parts])
    index = ClassIndex.open(folder / "index.npy", 5)
    assert isinstance(index.rows, np.memmap) or not len(everything)
    assert index.counts.tolist() == counts.tolist() == np.bincount(everything["label"], minlength=5).tolist()
    np.testing.assert_array_equal(index.rows, np.sort(everything, order=["label", "shard", "offset"]))


def test_large_indexes_are_read_in_pieces(monkeypatch, tmp_path):
    rows = rows_with([0, 0, 2, 2, 2, 3, 5])
    rows["width"] = [1, 0, 1, 1, 0, 1, 0]
    np.save(tmp_path / "index.npy", rows)
    for piece_rows in (1, 2, 100):
        monkeypatch.setattr(index_module, "PIECE_ROWS", piece_rows)
        index = ClassIndex.open(tmp_path / "index.npy", 7)
        assert index.starts.tolist() == [0, 2, 2, 5, 6, 6, 7, 7]
        assert index.quarantined.tolist() == [1, 4, 6]
        assert index.labels(np.arange(7)).tolist() == rows["label"].tolist() == index.rows["label"].tolist()


def test_next_in_class_goes_round():
    index = ClassIndex.from_rows(rows_with([0, 0, 0, 1]), 2)
    assert [index.next_in_class(row) for row in range(4)] == [1, 2, 0, 3]


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
