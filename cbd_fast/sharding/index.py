"""ClassIndex: one row per picture, the rows of a class together, memory-mapped.

The file is a plain NumPy array (``.npy``) of ``INDEX_DTYPE``, sorted by label and then by place. Opening it touches
a few pages whatever its size, and any picture of any class is one row away.
"""

import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from cbd_fast.errors import InputError

INDEX_DTYPE = np.dtype(
    [
        ("offset", "<u8"),  # of the picture's first byte in its shard
        ("size", "<u4"),  # of the picture's file, in bytes
        ("shard", "<u4"),  # number of the shard in the manifest
        ("label", "<u4"),
        ("width", "<u4"),  # of the coded picture, in pixels
        ("height", "<u4"),
        ("crc32", "<u4"),  # of the picture's bytes
    ]
)


@dataclass(frozen=True)
class ClassIndex:
    """The pictures of a split, grouped by class.

    Attributes:
        rows: ``(num_pictures,)`` of ``INDEX_DTYPE``, sorted by label.
        starts: ``(num_classes + 1,)`` int64; the rows of class c are ``starts[c]`` up to ``starts[c + 1]``.
    """

    rows: np.ndarray
    starts: np.ndarray

    @classmethod
    def from_rows(cls, rows: np.ndarray, num_classes: int) -> "ClassIndex":
        """Groups rows that are already sorted by label."""
        return cls(rows, _class_starts(rows["label"], num_classes))

    @classmethod
    def open(cls, path: Path, num_classes: int) -> "ClassIndex":
        """Maps an index file into memory.

        Raises:
            InputError: the file is missing or not an index.
        """
        try:
            rows = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{path}: not a readable index ({error}); make the shards again") from error
        if rows.dtype != INDEX_DTYPE or rows.ndim != 1:
            raise InputError(
                f"{path}: holds an array of {rows.dtype}, not of the index's columns; make the shards again"
            )
        return cls.from_rows(rows, num_classes)

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def counts(self) -> np.ndarray:
        """``(num_classes,)`` int64, pictures per class."""
        return np.diff(self.starts)

    def next_in_class(self, row: int) -> int:
        """The row after ``row`` in its class; after the last one, the first."""
        label = int(self.rows["label"][row])
        first, end = int(self.starts[label]), int(self.starts[label + 1])
        return first if row + 1 == end else row + 1


def write_index(path: Path, rows: np.ndarray) -> int:
    """Writes rows sorted by (label, shard, offset) and returns the crc32 of the file."""
    order = np.lexsort((rows["offset"], rows["shard"], rows["label"]))
    with open(path, "wb") as file:
        np.save(file, rows[order], allow_pickle=False)
    return file_crc32(path)


def file_crc32(path: Path) -> int:
    """crc32 of a file, read in pieces so that it never counts as the process's memory."""
    crc = 0
    with open(path, "rb") as file:
        while piece := file.read(1 << 22):
            crc = zlib.crc32(piece, crc)
    return crc


def _class_starts(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """First row of every class, by bisecting for all classes at once: it reads C log2(N) labels, not N."""
    wanted = np.arange(num_classes + 1)
    low: np.ndarray = np.zeros(num_classes + 1, np.int64)
    high: np.ndarray = np.full(num_classes + 1, len(labels), np.int64)
    while (searching := low < high).any():
        middle = (low + high) // 2
        before = searching.copy()
        before[searching] = labels[middle[searching]] < wanted[searching]
        low = np.where(before, middle + 1, low)
        high = np.where(searching & ~before, middle, high)
    return low
