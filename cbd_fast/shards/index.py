"""ClassIndex: one entry per image, the entries of a class together, memory-mapped.

The file is a plain NumPy array (``.npy``) of ``INDEX_DTYPE``, sorted by label, then by shard and offset. Any image of
any class is one entry away. Opening reads it once, piece by piece, and checks every entry.
"""

import errno
import mmap
import os
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import ArrayLike

from cbd_fast.errors import InputError, first_line, is_of_environment, printable
from cbd_fast.files import atomic_file
from cbd_fast.shards.manifest import file_size

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

PIECE_ENTRIES = 1 << 14  # entries that are looked at together: 512 KB, which a core's own cache holds
FORGET_ENTRIES = 1 << 19  # entries after which what was read of a mapped file is given back: 16 MB
MAX_HEADER_BYTES = 1024  # of the .npy file; it is Python's code, and long ones take long to parse
MAX_OFFSET = 1 << 62
MAX_IMAGE_BYTES = 1 << 29  # as many as an uncompressed RGB image of MAX_PIXELS has
MAX_PIXELS = 2 * 89_478_485  # where Pillow takes an image for a decompression bomb: 537 MB as RGB
REMEDY = "make the shards again, or, where they are somebody else's, index them again with cbd-fast index"


@dataclass(frozen=True)
class ClassIndex:
    """The images of a split, grouped by class. The index of an image is its position here.

    Attributes:
        entries: ``(num_images,)`` of ``INDEX_DTYPE``, sorted by label. A mapped file: what is looked at here comes to
            count as this process's memory, up to the whole of it; ``ShardReader.entries`` reads some of them and
            leaves nothing.
        starts: ``(num_classes + 1,)`` int64; the indices of class c are ``starts[c]`` up to ``starts[c + 1]``.
        quarantined: ``(n,)`` int64, indices of images that are marked as bad.
    """

    entries: np.ndarray
    starts: np.ndarray
    quarantined: np.ndarray

    @classmethod
    def from_entries(cls, entries: np.ndarray, num_classes: int, shard_bytes: np.ndarray | None = None) -> "ClassIndex":
        """The index of entries that are already sorted by label.

        Args:
            entries: ``(num_images,)`` of ``INDEX_DTYPE``.
            num_classes: number of classes; labels are below it.
            shard_bytes: ``(num_shards,)`` uint64, size of each shard, which images must lie in; None leaves this, and
                the images' sizes, unchecked.

        Raises:
            ValueError: an entry is not as it must be; the message has its row.
        """
        counts, quarantined, label_before = np.zeros(num_classes, np.int64), [np.empty(0, np.int64)], 0
        for start, piece in _pieces(entries):
            labels = np.ascontiguousarray(piece["label"])
            _check(start, piece, _broken_by_labels(labels, label_before, num_classes))
            if shard_bytes is not None:
                _check(start, piece, _broken_by_images(piece, shard_bytes))
            first, label_before = int(labels[0]), int(labels[-1])
            limits = np.searchsorted(labels, np.arange(first, label_before + 2))
            counts[first : label_before + 1] += np.diff(limits)
            quarantined.append(start + np.flatnonzero(piece["width"] == 0))
        return cls(entries, np.concatenate([[0], np.cumsum(counts)]), np.concatenate(quarantined))

    @classmethod
    def open(cls, path: Path, num_classes: int, shard_bytes: np.ndarray | None = None) -> "ClassIndex":
        """An index file, mapped into memory; where files cannot be mapped, read.

        Args:
            path: the index file.
            num_classes: number of classes.
            shard_bytes: as of ``from_entries``.

        Raises:
            InputError: the file is missing or not an index, or an entry is not as it must be.
        """
        try:
            return cls.from_entries(_map_entries(path), num_classes, shard_bytes)
        except OSError as error:
            if is_of_environment(error):
                raise
            raise InputError(f"{path}: not a readable index ({error.strerror or error}); {REMEDY}") from error
        except ValueError as error:
            raise InputError(f"{path}: {error}; {REMEDY}") from error

    def __len__(self) -> int:
        return len(self.entries)

    @cached_property
    def counts(self) -> np.ndarray:
        """``(num_classes,)`` int64, images per class."""
        return np.diff(self.starts)

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
        index = _make_entries(temporary, int(counts.sum()))
        next_position = np.cumsum(counts) - counts
        for part in parts:
            entries = np.load(part, allow_pickle=False)
            entries = entries[np.argsort(entries["label"], kind="stable")]
            labels, starts, numbers = np.unique(entries["label"], return_index=True, return_counts=True)
            positions = np.arange(len(entries)) + np.repeat(next_position[labels] - starts, numbers)
            index[positions] = entries
            next_position[labels] += numbers
        if isinstance(index, np.memmap):
            index.flush()
        else:
            with open(temporary, "wb") as file:
                np.save(file, index, allow_pickle=False)
    return counts


def _make_entries(path: Path, num_entries: int) -> np.ndarray:
    """Entries to be filled: of a file, or, where files cannot be mapped, in memory."""
    try:
        entries = np.lib.format.open_memmap(path, "w+", INDEX_DTYPE, (num_entries,))
    except OSError as error:
        if error.errno not in (errno.ENODEV, errno.ENOSYS, errno.EINVAL):
            raise
        return np.empty(num_entries, INDEX_DTYPE)
    # a disk that fills up is an error here; through the map it would end the process
    with open(path, "r+b") as file:
        os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    return entries


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


def is_index(path: Path) -> bool:
    """Whether a file, and no link to one, is an index that we wrote: nobody else's arrays have its columns."""
    if path.is_symlink() or not path.is_file():
        return False
    try:
        with open(path, "rb") as file:
            return _read_num_entries(file) >= 0
    except (OSError, ValueError):
        return False


def _map_entries(path: Path) -> np.ndarray:
    """The entries of an index file, mapped; ``(num_images,)`` of ``INDEX_DTYPE``."""
    num_bytes = file_size(path)
    with open(path, "rb") as file:
        num_entries, start = _read_num_entries(file), file.tell()
        if (rest := num_bytes - start) != num_entries * INDEX_DTYPE.itemsize:
            raise ValueError(f"not a readable index ({num_entries:,} entries need more or less than {rest:,} bytes)")
        if not num_entries:  # an empty file cannot be mapped
            return np.empty(0, INDEX_DTYPE)
        try:
            return np.memmap(file, INDEX_DTYPE, "r", start, (num_entries,))
        except OSError:  # some network file systems have no maps
            file.seek(start)
            return np.fromfile(file, INDEX_DTYPE, num_entries)


def _read_num_entries(file: BinaryIO) -> int:
    """Number of entries in the header of a ``.npy`` file, which is read strictly: as ``numpy.save`` writes ours."""
    try:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("its .npy header is of another version")
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file, max_header_size=MAX_HEADER_BYTES)
        if dtype.hasobject:
            raise ValueError("it holds Python objects")
    except Exception as error:  # NumPy parses it as Python's code, which fails in all sorts of ways
        raise ValueError(f"not a readable index ({printable(first_line(error))[:200]})") from error
    if dtype != INDEX_DTYPE or len(shape) != 1 or is_fortran:
        raise ValueError(f"holds an array of {printable(dtype)[:200]}, not of the index's columns")
    return int(shape[0])


def _check(start: int, piece: np.ndarray, rules: Iterator[tuple[np.ndarray, str]]) -> None:
    """Raises ``ValueError`` for the first entry that breaks the first rule that is broken."""
    for is_broken, what in rules:
        if is_broken.any():
            row = int(is_broken.argmax())
            columns = ", ".join(f"{name} {piece[row][name]}" for name in INDEX_DTYPE.names or ())
            raise ValueError(f"row {start + row:,} {what} ({columns})")


def _broken_by_labels(labels: np.ndarray, label_before: int, num_classes: int) -> Iterator[tuple[np.ndarray, str]]:
    """``(n,)`` bool and words, rule by rule: which entries of a piece are not where their labels have to be."""
    yield labels >= num_classes, f"has a label that is none of the {num_classes:,} classes"
    yield labels < np.concatenate([np.array([label_before], labels.dtype), labels[:-1]]), "is not sorted by label"


def _broken_by_images(piece: np.ndarray, shard_bytes: np.ndarray) -> Iterator[tuple[np.ndarray, str]]:
    """``(n,)`` bool and words, rule by rule: which entries of a piece name no image that there can be."""
    offset, size, shard, width, height = (
        np.ascontiguousarray(piece[name]) for name in ("offset", "size", "shard", "width", "height")
    )
    yield shard >= len(shard_bytes), f"has a shard that is none of the {len(shard_bytes):,}"
    yield (
        (size == 0) | (size > MAX_IMAGE_BYTES),
        f"has an image that is empty or has more than {MAX_IMAGE_BYTES:,} bytes",
    )
    is_marked, limit = width == 0, np.take(shard_bytes, shard)
    is_outside = (offset > limit) | (size > limit - offset)
    is_outside &= ~is_marked  # a bad image may be one whose shard has been cut off
    yield is_outside | (offset < tarfile.BLOCKSIZE) | (offset > MAX_OFFSET), "has an image that lies outside its shard"
    if int(width.max()) * int(height.max()) > MAX_PIXELS:
        yield width.astype(np.uint64) * height > MAX_PIXELS, f"has an image of more than {MAX_PIXELS:,} pixels"
    yield is_marked != (height == 0), "has an image without pixels"


def _pieces(entries: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Consecutive entries with the index of the first; never is more than 16 MB of a mapped file in memory."""
    for start in range(0, len(entries), PIECE_ENTRIES):
        yield start, entries[start : start + PIECE_ENTRIES]
        is_last = start + PIECE_ENTRIES >= len(entries)
        if (is_last or start % FORGET_ENTRIES == 0) and isinstance(entries.base, mmap.mmap):
            entries.base.madvise(mmap.MADV_DONTNEED)  # what was read would count as this process's; the system keeps it
