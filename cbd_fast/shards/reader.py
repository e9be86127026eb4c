"""ShardReader: a split of a folder of shards, opened; gives the bytes of any image and reads ahead."""

import io
import os
import resource
import tarfile
import threading
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from cbd_fast.errors import InputError
from cbd_fast.shards.index import INDEX_DTYPE, ClassIndex, file_crc32
from cbd_fast.shards.manifest import Manifest, SplitRecord, read_manifest

NUM_CHECKED = 64  # images that opening looks for
NUM_OTHER_FILES = 256  # that a process with loaders, libraries and sockets may have open besides the shards


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
        self.manifest: Manifest = read_manifest(self.folder)
        if split not in self.manifest.splits:
            raise InputError(f"{self.folder}: no split {split!r}, only {', '.join(self.manifest.splits)}")
        self.record: SplitRecord = self.manifest.splits[split]
        self.paths = [self.folder / shard.file for shard in self.record.shards]
        self._check_files()
        self._index_path = self.folder / self.record.index
        self.index = ClassIndex.open(self._index_path, self.num_classes)
        self._check_index()
        self._entries_offset = self._index_path.stat().st_size - len(self.index) * INDEX_DTYPE.itemsize
        self.quarantined = self._find_quarantined()
        _allow_open_files(len(self.paths) + NUM_OTHER_FILES)
        self._files: dict[Path, io.FileIO] = {}
        self._opening = threading.Lock()
        self._check_images()

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
        descriptor, num_bytes = self._descriptor(self._index_path), INDEX_DTYPE.itemsize
        read = [os.pread(descriptor, num_bytes, self._entries_offset + int(index) * num_bytes) for index in indices]
        return np.frombuffer(b"".join(read), INDEX_DTYPE)

    def read(self, index: int) -> np.ndarray:
        """The file of one image.

        Args:
            index: position of the image in the index.

        Returns:
            ``(num_bytes,)`` uint8, writable, a copy for the caller.

        Raises:
            OSError: the shard cannot be read, ends too early, or has other bytes there than were indexed.
        """
        entry = self.entries([index])[0]
        data = np.empty(int(entry["size"]), np.uint8)
        path = self.paths[int(entry["shard"])]
        # a positioned read, not a memory map: it leaves the interpreter's lock while it waits for a cold file
        num_read = os.preadv(self._descriptor(path), [data.data], int(entry["offset"]))
        if num_read != len(data):
            raise OSError(f"{path.name} ends at byte {int(entry['offset']) + num_read}")
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
            with suppress(OSError):  # reading will say what is wrong
                descriptor = self._descriptor(self.paths[int(entry["shard"])])
                os.posix_fadvise(descriptor, int(entry["offset"]), int(entry["size"]), advice)

    def name(self, index: int) -> str:
        """Where an image is, for messages: ``shard:member``, the member's name read from its tar header."""
        entry = self.entries([index])[0]
        path = self.paths[int(entry["shard"])]
        try:
            with open(path, "rb") as file:
                file.seek(int(entry["offset"]) - tarfile.BLOCKSIZE)
                header = tarfile.TarInfo.frombuf(file.read(tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
        except (OSError, tarfile.HeaderError):
            return f"{path.name}: byte {int(entry['offset'])}"
        return f"{path.name}:{header.name}"

    def close(self) -> None:
        """Closes the files; ``read`` opens them again."""
        with self._opening:
            while self._files:
                self._files.popitem()[1].close()

    def _descriptor(self, path: Path) -> int:
        if path not in self._files:
            with self._opening:
                if path not in self._files:
                    self._files[path] = open(path, "rb", buffering=0)  # noqa: SIM115
        return self._files[path].fileno()

    def _check_files(self) -> None:
        for path, shard in zip(self.paths, self.record.shards, strict=True):
            if not path.is_file():
                raise InputError(f"{path}: missing, but {self.folder}/dataset.json lists it; make the shards again")
            if (num_bytes := path.stat().st_size) != shard.num_bytes:
                raise InputError(
                    f"{path}: {num_bytes} bytes, but dataset.json has {shard.num_bytes}; make the shards again"
                )

    def _check_index(self) -> None:
        path, index, record = self._index_path, self.index, self.record
        if len(index) != record.num_images or index.counts.tolist() != record.class_counts:
            raise InputError(
                f"{path}: {len(index)} images, with other counts per class than the {record.num_images} of "
                "dataset.json; make the shards again"
            )
        if (in_shards := sum(shard.num_images for shard in record.shards)) != len(index):
            raise InputError(
                f"{self.folder}/dataset.json: its shards hold {in_shards} images, but the index has {len(index)}; "
                "make the shards again"
            )
        if file_crc32(path) != record.index_crc32:
            raise InputError(f"{path}: not the index that dataset.json was written with; make the shards again")

    def _find_quarantined(self) -> np.ndarray:
        indices = self.index.quarantined if self.record.num_quarantined else np.empty(0, np.int64)
        if len(indices) != self.record.num_quarantined:
            raise InputError(
                f"{self.folder}: {len(indices)} images of {self.split} are marked as bad, but dataset.json has "
                f"{self.record.num_quarantined}; run cbd-fast verify --quarantine"
            )
        return indices

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
                    f"images that were looked for in {self.paths[shard].name} are not there ({errors[0]}); make the "
                    "shards again"
                )


def _allow_open_files(num_files: int) -> None:
    """Raises this process's limit of open files where it is lower; often it is 1024 and may be half a million."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= num_files:
        return
    if hard != resource.RLIM_INFINITY and hard < num_files:
        raise InputError(
            f"the shards need {num_files} open files, but this system allows {hard}; raise the limit (ulimit -Hn) "
            "or make larger shards (--shard-megabytes)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (num_files, hard))
