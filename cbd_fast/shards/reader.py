"""ShardReader: a split of a folder of shards, opened; gives the bytes of any image and reads ahead."""

import errno
import os
import resource
import tarfile
import threading
import zlib
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path

import numpy as np

from cbd_fast.errors import InputError, RunError, describe_os_error, printable
from cbd_fast.shards.index import INDEX_DTYPE, REMEDY, ClassIndex, file_crc32
from cbd_fast.shards.manifest import Manifest, SplitRecord, file_size, read_manifest

NUM_CHECKED = 64  # images that opening looks for
NUM_OTHER_FILES = 256  # that a process with loaders, libraries and sockets may have open besides the shards
MIN_ATTEMPTS = 3  # of opening while another command may be writing
MIN_KEPT_FILES = 8  # shards that stay open where few files may be open; others are opened for each image


class ShardReader:
    """The shards and the index of one split.

    Opening checks that manifest, index and files agree: sizes, counts, the index's crc32, and some of the images.
    ``read`` may be called from any number of threads.

    Attributes:
        folder: the folder of the shards.
        split: name of the split.
        manifest: manifest of the whole dataset.
        record: the split's part of the manifest.
        paths: files of the split's shards, in the order of their numbers.
        index: the split's images by class.
        quarantined: ``(n,)`` int64, indices of images that cbd-fast verify has marked as bad.
    """

    def __init__(self, folder: str | Path, split: str) -> None:
        """Opens a split.

        Args:
            folder: a folder of shards with its ``dataset.json``.
            split: ``train``, ``test``, ...

        Raises:
            InputError: there is no such split, or manifest, index and files disagree.
        """
        self.folder = Path(folder)
        self.split = split
        self._files: dict[int, _OpenFile] = {}  # by shard; the one that was opened first comes first
        self._opening = threading.Lock()
        for attempt in count(1):
            self.manifest: Manifest = read_manifest(self.folder)
            try:
                self._open()
                break
            except (InputError, FileNotFoundError):
                # cbd-fast verify may just be replacing index and manifest, which it writes last
                if attempt >= MIN_ATTEMPTS and read_manifest(self.folder) == self.manifest:
                    raise
        self._max_files = _allow_open_files(len(self.paths))
        self._check_images()

    def _open(self) -> None:
        """Opens the index that the manifest names, and checks that both and the files agree."""
        if self.split not in self.manifest.splits:
            raise InputError(f"{self.folder}: no split {self.split!r}, only {', '.join(self.manifest.splits)}")
        self.record: SplitRecord = self.manifest.splits[self.split]
        self.paths = [shard.path(self.folder) for shard in self.record.shards]
        self._check_files()
        self._index_path = self.record.index_path(self.folder)
        self._size(self._index_path)
        self._index_file: _OpenFile | None = _OpenFile(self._index_path)
        shard_bytes = np.array([shard.num_bytes for shard in self.record.shards], np.uint64)
        self.index = ClassIndex.open(self._index_path, self.num_classes, shard_bytes)
        self._check_index()
        self.quarantined = self.index.quarantined

    @property
    def num_classes(self) -> int:
        """Classes of the dataset, whether this split has images of them or not."""
        return len(self.manifest.classes)

    @property
    def train_counts(self) -> np.ndarray:
        """``(num_classes,)`` int64 training images per class, whichever split this is."""
        return np.array(self.manifest.splits["train"].class_counts)

    def __len__(self) -> int:
        return len(self.index)

    def entries(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Entries of the index, ``(n,)`` of ``INDEX_DTYPE``.

        They are read one by one: in a map, each would bring 64 KB or more around it into this process's memory, to
        stay there.

        Args:
            indices: ``(n,)`` int, each from 0 to ``len(self) - 1``.
        """
        file, num_bytes = self._index_file, INDEX_DTYPE.itemsize
        if file is None:  # after closing; by its name another could be opened by now
            return self.index.entries[np.asarray(indices, np.int64)]
        start = file.num_bytes - len(self.index) * num_bytes
        read = [os.pread(file.descriptor, num_bytes, start + int(index) * num_bytes) for index in indices]
        return np.frombuffer(b"".join(read), INDEX_DTYPE)

    def read(self, index: int) -> np.ndarray:
        """The file of one image.

        Args:
            index: position of the image in the index.

        Returns:
            ``(num_bytes,)`` uint8, writable, a copy for the caller.

        Raises:
            OSError: the shard cannot be read, ends too early, or has other bytes there than were indexed.
            RunError: this process has too many files open.
        """
        entry = self.entries([index])[0]
        file = self._file(int(entry["shard"]))
        data = np.empty(int(entry["size"]), np.uint8)
        # a positioned read, not a memory map: it leaves the interpreter's lock while it waits for a cold file
        num_read = os.preadv(file.descriptor, [data.data], int(entry["offset"]))
        if num_read != len(data):
            name = printable(self.paths[int(entry["shard"])].name)
            raise OSError(f"{name} ends at byte {int(entry['offset']) + num_read}")
        # damaged bytes can decode to wrong pixels without complaint, and crash some decoders
        if zlib.crc32(data.data) != int(entry["crc32"]):
            raise OSError("the bytes are not those that were indexed (crc32)")
        return data

    def read_ahead(self, indices: Sequence[int]) -> None:
        """Asks the system to fetch images that will be read soon; returns at once."""
        self._advise(indices, os.POSIX_FADV_WILLNEED)

    def forget(self, indices: Sequence[int]) -> None:
        """Asks the system to drop images from its memory, as far as whole pages are theirs."""
        self._advise(indices, os.POSIX_FADV_DONTNEED)

    def _advise(self, indices: Sequence[int], advice: int) -> None:
        for entry in self.entries(indices):
            with suppress(OSError, RunError):  # reading will say what is wrong
                file = self._file(int(entry["shard"]))
                os.posix_fadvise(file.descriptor, int(entry["offset"]), int(entry["size"]), advice)

    def name(self, index: int) -> str:
        """Where an image is, for messages: ``shard:member``, the member's name read from its tar header."""
        entry = self.entries([index])[0]
        shard, offset = int(entry["shard"]), int(entry["offset"])
        path = printable(self.paths[shard].name)
        try:
            header = os.pread(self._file(shard).descriptor, tarfile.BLOCKSIZE, offset - tarfile.BLOCKSIZE)
            return f"{path}:{printable(tarfile.TarInfo.frombuf(header, 'utf-8', 'surrogateescape').name)}"
        except (OSError, ValueError, RunError, tarfile.HeaderError):
            return f"{path}: byte {offset}"

    def close(self) -> None:
        """Closes the files; ``read`` opens them again."""
        with self._opening:
            self._files.clear()
            self._index_file = None

    def _file(self, shard: int) -> "_OpenFile":
        return self._files.get(shard) or self._open_shard(shard)

    def _open_shard(self, shard: int) -> "_OpenFile":
        with self._opening:
            if shard not in self._files:
                while len(self._files) >= self._max_files:
                    del self._files[next(iter(self._files))]  # threads that are reading it keep it open so long
                try:
                    self._files[shard] = _OpenFile(self.paths[shard])
                except OSError as error:
                    if error.errno not in (errno.EMFILE, errno.ENFILE):
                        raise
                    self._files.clear()
                    try:
                        self._files[shard] = _OpenFile(self.paths[shard])
                    except OSError as again:  # no fault of the image
                        raise RunError(describe_os_error(again)) from again
            return self._files[shard]

    def _size(self, path: Path) -> int:
        try:
            return file_size(path)
        except OSError as error:
            is_missing = isinstance(error, FileNotFoundError | NotADirectoryError)
            reason = "missing" if is_missing else error.strerror
            what_to_do = f"bring it back, or {REMEDY}"
            raise InputError(f"{path}: {reason}, but {self.folder}/dataset.json lists it; {what_to_do}") from error

    def _check_files(self) -> None:
        for path, shard in zip(self.paths, self.record.shards, strict=True):
            num_bytes = self._size(path)
            if num_bytes != shard.num_bytes:
                raise InputError(f"{path}: {num_bytes} bytes, but dataset.json has {shard.num_bytes}; {REMEDY}")
        in_shards, in_index = sum(shard.num_images for shard in self.record.shards), self.record.num_images
        if in_shards != in_index:
            counts = f"its shards hold {in_shards} images, but the index has {in_index}"
            raise InputError(f"{self.folder}/dataset.json: {counts}; {REMEDY}")

    def _check_index(self) -> None:
        path, index, record = self._index_path, self.index, self.record
        if len(index) != record.num_images or index.counts.tolist() != record.class_counts:
            raise InputError(
                f"{path}: {len(index)} images, with other counts per class than the {record.num_images} of "
                f"dataset.json; {REMEDY}"
            )
        if file_crc32(path) != record.index_crc32:
            raise InputError(f"{path}: not the index that dataset.json was written with; {REMEDY}")
        if (num_marked := len(index.quarantined)) != record.num_quarantined:
            raise InputError(
                f"{self.folder}: {num_marked} images of {self.split} are marked as bad, but dataset.json has "
                f"{record.num_quarantined}; run cbd-fast verify --quarantine"
            )

    def _check_images(self) -> None:
        """Reads a few images all over the index: single ones may be damaged, but not all of a tar."""
        spread = sorted({len(self) * number // NUM_CHECKED for number in range(NUM_CHECKED)}) if len(self) else []
        indices = [index for index in spread if index not in set(self.quarantined.tolist())]
        errors_by_shard: dict[int, list[OSError | None]] = {}
        for index, entry in zip(indices, self.entries(indices), strict=True):
            errors = errors_by_shard.setdefault(int(entry["shard"]), [])
            try:
                self.read(index)
                errors.append(None)
            except OSError as error:
                errors.append(error)
        for shard, errors in errors_by_shard.items():
            if len(errors) > 1 and all(errors):
                raise InputError(
                    f"{self.folder}: the tars of {self.split} do not go with its index, {len(errors)} of {len(errors)} "
                    f"images that were looked for in {self.paths[shard].name} are not there ({errors[0]}); {REMEDY}"
                )


class _OpenFile:
    """A file for positioned reads, open as long as anybody has this object.

    Attributes:
        descriptor: number of the open file.
        num_bytes: its size.
    """

    def __init__(self, path: Path) -> None:
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.num_bytes = os.fstat(self.descriptor).st_size

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


def _allow_open_files(num_shards: int) -> int:
    """How many shards may be open; this process's limit of open files, which often is 1024, is raised to that end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = num_shards + NUM_OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return num_shards
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return min(num_shards, max(MIN_KEPT_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - NUM_OTHER_FILES))
