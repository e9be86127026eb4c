"""ClassIndex: one entry per image, the entries of a class together, memory-mapped.

The file is a plain NumPy array (``.npy``) of ``INDEX_DTYPE``, sorted by label, then by shard and offset. Any image of
any class is one entry away. Opening reads the labels once, piece by piece.
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
from cbd_fast.files import atomic_file

INDEX_DTYPE = np.dtype(
    [
        ("offset", "<u8"),  # of the image's first byte in its shard
        ("size", "<u4"),  # of the image's file, in bytes
        ("shard", "<u4"),  # number of the shard in the manifest
        ("label", "<u4"),
        ("width", "<u4"),  # of the coded image, in pixels; 0 marks an image that turned out to be bad
        ("height", "<u4"),
        ("crc32", "<u4"),  # of the image's bytes
    ]
)

PIECE_ENTRIES = 1 << 20  # entries that are looked at together: 32 MB


@dataclass(frozen=True)
class ClassIndex:
    """The images of a split, grouped by class. The index of an image is its position here.

    Attributes:
        entries: ``(num_images,)`` of ``INDEX_DTYPE``, sorted by label. A mapped file: what is looked at here comes to
            count as this process's memory, up to the whole of it; ``ShardReader.entries`` reads some of them and
            leaves nothing.
        starts: ``(num_classes + 1,)`` int64; the indices of class c are ``starts[c]`` up to ``starts[c + 1]``.
    """

    entries: np.ndarray
    starts: np.ndarray

    @classmethod
    def from_entries(cls, entries: np.ndarray, num_classes: int) -> "ClassIndex":
        """The index of entries that are already sorted by label."""
        labels = np.arange(num_classes + 1, dtype=np.int64)
        starts = np.zeros(num_classes + 1, np.int64)
        for _, piece in _pieces(entries):
            starts += np.searchsorted(piece["label"].astype(np.int64), labels)
        return cls(entries, starts)

    @classmethod
    def open(cls, path: Path, num_classes: int) -> "ClassIndex":
        """An index file, mapped into memory.

        Raises:
            InputError: the file is missing or not an index.
        """
        try:
            entries = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{path}: not a readable index ({error}); make the shards again") from error
        if entries.dtype != INDEX_DTYPE or entries.ndim != 1:
            raise InputError(
                f"{path}: holds an array of {entries.dtype}, not of the index's columns; make the shards again"
            )
        return cls.from_entries(entries, num_classes)

    def __len__(self) -> int:
        return len(self.entries)

    @cached_property
    def counts(self) -> np.ndarray:
        """``(num_classes,)`` int64, images per class."""
        return np.diff(self.starts)

    @property
    def quarantined(self) -> np.ndarray:
        """``(n,)`` int64, indices of images that are marked as bad; it reads the whole index."""
        indices = [start + np.flatnonzero(piece["width"] == 0) for start, piece in _pieces(self.entries)]
        return np.concatenate([np.empty(0, np.int64), *indices])

    def labels(self, indices: ArrayLike) -> np.ndarray:
        """int64 labels of images, without a look at the file."""
        return np.searchsorted(self.starts, indices, side="right") - 1

    def next_in_class(self, index: int) -> int:
        """The index after ``index`` in its class; after the last one, the first."""
        label = int(self.labels(index))
        start, stop = int(self.starts[label]), int(self.starts[label + 1])
        return start if index + 1 == stop else index + 1


def write_index(path: Path, parts: Sequence[Path], num_classes: int) -> np.ndarray:
    """Puts the entries of all shards together, sorted by label, then by shard and offset.

    Args:
        path: the index file.
        parts: one ``.npy`` file of entries per shard, in the order of the shards; entries in the order of their
            offsets.
        num_classes: number of classes; labels are below it.

    Returns:
        ``(num_classes,)`` int64, images per class.
    """
    counts = np.zeros(num_classes, np.int64)
    for part in parts:
        counts += np.bincount(np.load(part, allow_pickle=False)["label"], minlength=num_classes)
    if not counts.sum():  # an empty file cannot be mapped
        write_entries(path, np.empty(0, INDEX_DTYPE))
        return counts
    with atomic_file(path) as temporary:
        index = np.lib.format.open_memmap(temporary, "w+", INDEX_DTYPE, (int(counts.sum()),))
        # a disk that fills up is an error here; through the map it would end the process
        with open(temporary, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
        next_position = np.cumsum(counts) - counts
        for part in parts:
            entries = np.load(part, allow_pickle=False)
            entries = entries[np.argsort(entries["label"], kind="stable")]
            labels, starts, numbers = np.unique(entries["label"], return_index=True, return_counts=True)
            positions = np.arange(len(entries)) + np.repeat(next_position[labels] - starts, numbers)
            index[positions] = entries
            next_position[labels] += numbers
        index.flush()
    return counts


def write_entries(path: Path, entries: np.ndarray) -> None:
    """Writes ``(n,)`` of ``INDEX_DTYPE`` to a ``.npy`` file, whole or not at all."""
    with atomic_file(path) as temporary, open(temporary, "wb") as file:
        np.save(file, entries, allow_pickle=False)


def file_crc32(path: Path) -> int:
    """crc32 of a file, read in pieces so that it never counts as the process's memory."""
    crc = 0
    with open(path, "rb") as file:
        while piece := file.read(1 << 22):
            crc = zlib.crc32(piece, crc)
    return crc


def _pieces(entries: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Consecutive entries with the index of the first; never is more than a piece of a mapped file in memory."""
    for start in range(0, len(entries), PIECE_ENTRIES):
        yield start, entries[start : start + PIECE_ENTRIES]
        if isinstance(entries, np.memmap) and isinstance(entries.base, mmap.mmap):
            entries.base.madvise(mmap.MADV_DONTNEED)  # what was read would count as this process's; the system keeps it
