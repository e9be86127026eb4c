"""ClassIndex: one row per image, the rows of a class together, memory-mapped.

The file is a plain NumPy array (``.npy``) of ``INDEX_DTYPE``, sorted by label and then by place. Any image of any
class is one row away. Opening reads the labels once, piece by piece.
"""

import mmap
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from cbd_fast.errors import InputError
from cbd_fast.files import fsync_path

INDEX_DTYPE = np.dtype(
    [
        ("offset", "<u8"),  # of the image's first byte in its shard
        ("size", "<u4"),  # of the image's file, in bytes
        ("shard", "<u4"),  # number of the shard in the manifest
        ("label", "<u4"),
        ("width", "<u4"),  # of the coded image, in pixels; 0 marks an image that was found to be bad
        ("height", "<u4"),
        ("crc32", "<u4"),  # of the image's bytes
    ]
)

PIECE_ROWS = 1 << 20  # that are looked at together: 32 MB


@dataclass(frozen=True)
class ClassIndex:
    """The images of a split, grouped by class.

    Attributes:
        rows: ``(num_images,)`` of ``INDEX_DTYPE``, sorted by label. A mapped file: what is looked at here comes to
            count as this process's memory, up to the whole of it; ``ShardReader.places`` reads rows and leaves nothing.
        starts: ``(num_classes + 1,)`` int64; the rows of class c are ``starts[c]`` up to ``starts[c + 1]``.
    """

    rows: np.ndarray
    starts: np.ndarray

    @classmethod
    def from_rows(cls, rows: np.ndarray, num_classes: int) -> "ClassIndex":
        """Groups rows that are already sorted by label."""
        labels = np.arange(num_classes + 1, dtype=np.int64)
        starts = np.zeros(num_classes + 1, np.int64)
        for _, piece in _pieces(rows):
            starts += np.searchsorted(piece["label"].astype(np.int64), labels)
        return cls(rows, starts)

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
        """``(num_classes,)`` int64, images per class."""
        return np.diff(self.starts)

    @property
    def quarantined(self) -> np.ndarray:
        """``(n,)`` int64, rows of images that are marked as bad; it reads the whole index."""
        found = [first + np.flatnonzero(piece["width"] == 0) for first, piece in _pieces(self.rows)]
        return np.concatenate([np.empty(0, np.int64), *found])

    def labels(self, rows: ArrayLike) -> np.ndarray:
        """int64 labels of rows, without a look at the file."""
        return np.searchsorted(self.starts, rows, side="right") - 1

    def next_in_class(self, row: int) -> int:
        """The row after ``row`` in its class; after the last one, the first."""
        label = int(self.labels(row))
        first, end = int(self.starts[label]), int(self.starts[label + 1])
        return first if row + 1 == end else row + 1


def write_index(path: Path, parts: Sequence[Path], num_classes: int) -> np.ndarray:
    """Puts the rows of all shards together, sorted by label and then by place.

    Args:
        path: the index file.
        parts: one ``.npy`` file of rows per shard, in the order of the shards; rows in the order of their offsets.
        num_classes: labels are below it.

    Returns:
        ``(num_classes,)`` int64, images per class.
    """
    counts = np.zeros(num_classes, np.int64)
    for part in parts:
        counts += np.bincount(np.load(part, allow_pickle=False)["label"], minlength=num_classes)
    if not counts.sum():  # an empty file cannot be mapped
        np.save(path, np.empty(0, INDEX_DTYPE), allow_pickle=False)
        return counts
    index = np.lib.format.open_memmap(path, "w+", INDEX_DTYPE, (int(counts.sum()),))
    with open(path, "r+b") as file:  # a disk that fills up is an error here; through the map it would end the process
        os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    next_row = np.cumsum(counts) - counts
    for part in parts:
        rows = np.load(part, allow_pickle=False)
        rows = rows[np.argsort(rows["label"], kind="stable")]
        labels, firsts, numbers = np.unique(rows["label"], return_index=True, return_counts=True)
        places = np.arange(len(rows)) + np.repeat(next_row[labels] - firsts, numbers)
        index[places] = rows
        next_row[labels] += numbers
    index.flush()
    fsync_path(path)
    return counts


def file_crc32(path: Path) -> int:
    """crc32 of a file, read in pieces so that it never counts as the process's memory."""
    crc = 0
    with open(path, "rb") as file:
        while piece := file.read(1 << 22):
            crc = zlib.crc32(piece, crc)
    return crc


def _pieces(rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Consecutive rows with the number of the first; never is more than a piece of a mapped file in memory."""
    for first in range(0, len(rows), PIECE_ROWS):
        yield first, rows[first : first + PIECE_ROWS]
        if isinstance(rows, np.memmap) and isinstance(rows.base, mmap.mmap):
            rows.base.madvise(mmap.MADV_DONTNEED)  # what was read would count as this process's; the system keeps it
