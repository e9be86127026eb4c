"""One shard: its images checked, its tar written or indexed where it is, and what became of it.

A shard is finished when its report is there; tar, entries and report reach the disk in this order, so a killed command
goes on behind the last finished shard.
"""

import errno
import hashlib
import json
import os
import tarfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cbd_fast.errors import RunError
from cbd_fast.files import PARTIAL_SUFFIX, file_sha256, publish
from cbd_fast.shards.index import INDEX_DTYPE, write_entries
from cbd_fast.shards.manifest import ShardRecord
from cbd_fast.shards.sources.base import SourceImage
from cbd_fast.shards.writing.deep_pixels import ValueRange
from cbd_fast.shards.writing.set_range import write_shard_range
from cbd_fast.shards.writing.validate_image import ValidatedImage, measure_image, validate_image
from cbd_fast.shards.writing.work_items import ShardReport, Skipped, WorkItem, WorkPlan, entries_path, range_path

# What this process lacks, which is no fault of an image that it cannot read
PROCESS_ERRNOS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
RECORD_BYTES = 10_240  # a tar ends with zeros up to a multiple of this


@dataclass
class Tally:
    """What is counted while the images of a shard pass."""

    entries: list[tuple[int, ...]] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    num_converted: int = 0
    num_resized: int = 0
    num_oriented: int = 0
    num_bare: int = 0
    num_paged: int = 0
    num_deep: int = 0

    def add(self, offset: int, shard: int, label: int, checked: ValidatedImage) -> None:
        """Counts an image and keeps its entry of the index."""
        crc32 = zlib.crc32(checked.data)
        self.entries.append((offset, len(checked.data), shard, label, checked.width, checked.height, crc32))
        self.num_converted += checked.converted
        self.num_resized += checked.resized
        self.num_oriented += checked.oriented
        self.num_bare += checked.bare
        self.num_paged += checked.paged
        self.num_deep += checked.deep


class ShardWriter:
    """Makes shards one after the other; the last one reaches the disk while the next is being made."""

    def __init__(self, plan: WorkPlan, on_image: Callable[[], None], on_skip: Callable[[list[Skipped]], None]) -> None:
        """Starts the thread that brings shards to the disk.

        Args:
            plan: what is to be done.
            on_image: called before each image.
            on_skip: called at each image left out, with all that were left out of its shard.
        """
        self._plan, self._on_image, self._on_skip = plan, on_image, on_skip
        self._behind = ThreadPoolExecutor(1)
        self._unfinished: Future[None] | None = None

    def make(self, item: WorkItem, images: Iterable[SourceImage]) -> None:
        """Writes one tar, or indexes it where it is.

        Args:
            item: the shard to be made.
            images: the shard's images, in order.

        Raises:
            OSError: the shard could not be written.
            RunError: the images' folder is gone.
            RangeNeededError: an image has more than 8 bits per sample, and the range of the set is not known yet.
        """
        tally = Tally()
        make = self._index if self._plan.in_place else self._write
        temporary, sha256, num_bytes = make(item, images, tally)
        record = ShardRecord(file=item.file, num_images=len(tally.entries), num_bytes=num_bytes, sha256=sha256)
        report = ShardReport(
            record=record,
            skipped=tally.skipped,
            num_converted=tally.num_converted,
            num_resized=tally.num_resized,
            num_oriented=tally.num_oriented,
            num_bare=tally.num_bare,
            num_paged=tally.num_paged,
            num_deep=tally.num_deep,
        )
        self.finish()
        self._unfinished = self._behind.submit(self._keep, item, temporary, tally.entries, report)

    def measure(self, item: WorkItem, images: Iterable[SourceImage]) -> None:
        """Writes the range of a shard's images of more than 8 bits.

        Args:
            item: the shard that has such images.
            images: the shard's images, in order.

        Raises:
            OSError: the range could not be written.
            RunError: the images' folder is gone.
        """
        found: ValueRange | None = None
        is_complete = True
        for image in images:
            self._on_image()
            try:
                value_range = measure_image(image.read(), self._plan.rules)
            except OSError as error:
                if error.errno in PROCESS_ERRNOS:
                    raise
                self._check_roots()
                is_complete = False
            except ValueError:  # it cannot be used, which is told when it is to be written
                pass
            else:
                found = found | value_range if found and value_range else found or value_range
        write_shard_range(range_path(self._plan.work, item), found, is_complete)

    def finish(self) -> None:
        """Waits until the last shard is on the disk."""
        if self._unfinished is not None:
            self._unfinished.result()

    def _write(self, item: WorkItem, images: Iterable[SourceImage], tally: Tally) -> tuple[Path, str, int]:
        temporary = self._plan.folder / f"{item.file}.{os.getpid()}{PARTIAL_SUFFIX}"
        try:
            return temporary, *self._write_tar(temporary, item, images, tally)
        except BaseException:  # what it takes of a full disk is free again
            temporary.unlink(missing_ok=True)
            raise

    def _write_tar(
        self, temporary: Path, item: WorkItem, images: Iterable[SourceImage], tally: Tally
    ) -> tuple[str, int]:
        sha256, position = hashlib.sha256(), 0
        with open(temporary, "wb", buffering=0) as file:
            for key, image in zip(item.positions, images, strict=True):
                if (checked := self._checked(image, tally)) is None:
                    continue
                label = int(image.label)
                metadata = {"path": image.name} | json.loads(image.metadata or "{}")
                tally.add(position + tarfile.BLOCKSIZE, item.number, label, checked)
                header, data, padding = tar_member(f"{key:09d}.{checked.extension}", checked.data)
                cls = tar_member(f"{key:09d}.cls", b"%d" % label)
                parts = (
                    header,
                    data,
                    b"".join((padding, *cls, *tar_member(f"{key:09d}.json", json.dumps(metadata).encode()))),
                )
                for part in parts:
                    sha256.update(part)
                    position += len(part)
                _write_all(file.fileno(), parts)
            end = bytes(2 * tarfile.BLOCKSIZE + -(position + 2 * tarfile.BLOCKSIZE) % RECORD_BYTES)
            sha256.update(end)
            _write_all(file.fileno(), (end,))
        return sha256.hexdigest(), position + len(end)

    def _index(self, item: WorkItem, images: Iterable[SourceImage], tally: Tally) -> tuple[None, str, int]:
        path = self._plan.folder / item.file
        for image in images:
            checked = self._checked(image, tally)
            if checked is not None and checked.converted:
                reason = "not of 8-bit grey or RGB, or a format that only rewriting (--out) can use"
                self._skip(image, reason, tally)
            elif checked is not None:
                assert image.offset is not None
                tally.add(image.offset, item.number, int(image.label), checked)
        return None, file_sha256(path), path.stat().st_size

    def _checked(self, image: SourceImage, tally: Tally) -> ValidatedImage | None:
        self._on_image()
        try:
            return validate_image(image.read(), self._plan.rules)
        except OSError as error:
            if error.errno in PROCESS_ERRNOS:
                raise
            self._check_roots()
            self._skip(image, error.strerror or str(error), tally, unreadable=True)
        except ValueError as error:
            self._skip(image, str(error), tally)
        return None

    def _skip(self, image: SourceImage, reason: str, tally: Tally, unreadable: bool = False) -> None:
        label = int(image.label)
        tally.skipped.append(
            Skipped(split=image.split, label=label, name=image.name, reason=reason, unreadable=unreadable)
        )
        self._on_skip(tally.skipped)

    def _check_roots(self) -> None:
        """An image that cannot be read is bad; a file system that is gone is not a thousand bad images."""
        for root, device in self._plan.roots:
            try:
                device_now: int | None = os.stat(root).st_dev
            except OSError:
                device_now = None
            if device_now != device:
                raise RunError(f"{root}: the folder of the images is gone; once it is back, give the same command")

    def _keep(
        self, item: WorkItem, temporary: Path | None, entries: list[tuple[int, ...]], report: ShardReport
    ) -> None:
        if temporary is not None:
            publish(temporary, self._plan.folder / item.file)
        write_entries(entries_path(self._plan.work, item), np.array(entries, INDEX_DTYPE))
        report.write(self._plan.work, item)


def _header_template() -> bytes:
    """A tar header of a file without name, size and checksum; owner 0, mode 0644 and time 0, so bytes can be equal."""
    header = bytearray(tarfile.TarInfo().tobuf(tarfile.USTAR_FORMAT))
    header[SIZE_FIELD] = bytes(12)
    header[CHECKSUM_FIELD] = b" " * 8  # counts as spaces
    return bytes(header)


NAME_BYTES = 100
SIZE_FIELD, CHECKSUM_FIELD = slice(124, 136), slice(148, 156)
_TEMPLATE = _header_template()
_TEMPLATE_SUM = sum(_TEMPLATE)


def tar_member(name: str, data: bytes) -> tuple[bytes, bytes, bytes]:
    """Header, content and padding of a file in a tar, as ``tarfile`` writes them but ten times as fast."""
    encoded, size = name.encode("ascii"), b"%011o\0" % len(data)
    assert len(encoded) <= NAME_BYTES
    checksum = b"%06o\0 " % (_TEMPLATE_SUM + sum(encoded) + sum(size))
    header = b"".join(
        (
            encoded.ljust(NAME_BYTES, b"\0"),
            _TEMPLATE[NAME_BYTES : SIZE_FIELD.start],
            size,
            _TEMPLATE[SIZE_FIELD.stop : CHECKSUM_FIELD.start],
            checksum,
            _TEMPLATE[CHECKSUM_FIELD.stop :],
        )
    )
    return header, data, bytes(-len(data) % tarfile.BLOCKSIZE)


def _write_all(descriptor: int, parts: Sequence[bytes]) -> None:
    """Writes parts in one call where the system takes them all: neither copied together nor one by one."""
    num_written = os.writev(descriptor, parts)
    if num_written < sum(map(len, parts)):  # a signal, or a disk that is nearly full
        rest = memoryview(b"".join(parts))[num_written:]
        while rest:
            rest = rest[os.write(descriptor, rest) :]
