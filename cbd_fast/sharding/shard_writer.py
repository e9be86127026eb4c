"""One shard: its pictures checked, its tar written or indexed where it is, and what became of it.

A shard is finished when its report is there; tar, rows and report are on the disk in this order, so a killed command
goes on behind the last finished shard.
"""

import hashlib
import json
import os
import tarfile
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from cbd_fast.errors import RunError
from cbd_fast.files import PARTIAL_SUFFIX, file_sha256, to_disk, write_whole
from cbd_fast.sharding.index import INDEX_DTYPE
from cbd_fast.sharding.listing import SourcePicture
from cbd_fast.sharding.manifest import ShardRecord
from cbd_fast.sharding.pictures import CheckedPicture, PictureRules, check_picture

WORK_FOLDER = ".cbd_fast-work"  # below the half-made folder, or the folder of foreign shards
RECORD_BYTES = 10_240  # a tar ends with zeros up to a multiple of this


class Skipped(BaseModel):
    """A picture that was left out."""

    split: str
    label: int
    name: str
    reason: str
    unreadable: bool = False  # the file could not be read, which may pass


class ShardReport(BaseModel):
    """What became of one shard, beside its rows of the index."""

    record: ShardRecord
    skipped: list[Skipped]
    num_converted: int
    num_resized: int
    num_oriented: int


@dataclass(frozen=True, kw_only=True)
class Shard:
    """What is to be done: the pictures at ``places`` of the listing's order go into one tar."""

    split: str
    number: int
    file: str
    places: range

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:06d}"


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What all shards of a command have in common.

    Attributes:
        folder: of the shards.
        work: folder of the reports, rows and the listing.
        rules: how pictures are checked and stored.
        roots: each folder that pictures are read from, with the device it was on.
        in_place: whether the tars are somebody else's, to be indexed where they are.
    """

    folder: Path
    work: Path
    rules: PictureRules
    roots: list[tuple[str, int]]
    in_place: bool = False


@dataclass
class Tally:
    """What is counted while the pictures of a shard pass."""

    rows: list[tuple[int, ...]] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    num_converted: int = 0
    num_resized: int = 0
    num_oriented: int = 0

    def add(self, offset: int, shard: int, label: int, checked: CheckedPicture) -> None:
        """Counts a picture and keeps its row of the index."""
        crc32 = zlib.crc32(checked.data)
        self.rows.append((offset, len(checked.data), shard, label, checked.width, checked.height, crc32))
        self.num_converted += checked.converted
        self.num_resized += checked.resized
        self.num_oriented += checked.oriented


class ShardWriter:
    """Makes shards one after the other; the last one reaches the disk while the next is being made."""

    def __init__(
        self, surroundings: Surroundings, on_picture: Callable[[], None], on_skip: Callable[[list[Skipped]], None]
    ) -> None:
        """``on_picture`` is called before each picture, ``on_skip`` with those left out of a shard at each new one."""
        self._surroundings, self._on_picture, self._on_skip = surroundings, on_picture, on_skip
        self._behind = ThreadPoolExecutor(1)
        self._unfinished: Future[None] | None = None

    def make(self, shard: Shard, pictures: Iterable[SourcePicture]) -> None:
        """Writes one tar, or indexes it where it is.

        Raises:
            OSError: the shard could not be written.
            RunError: the pictures' folder is gone.
        """
        tally = Tally()
        make = self._index if self._surroundings.in_place else self._write
        temporary, sha256, num_bytes = make(shard, pictures, tally)
        record = ShardRecord(file=shard.file, num_pictures=len(tally.rows), num_bytes=num_bytes, sha256=sha256)
        report = ShardReport(
            record=record,
            skipped=tally.skipped,
            num_converted=tally.num_converted,
            num_resized=tally.num_resized,
            num_oriented=tally.num_oriented,
        )
        self.finish()
        self._unfinished = self._behind.submit(self._keep, shard, temporary, tally.rows, report)

    def finish(self) -> None:
        """Waits until the last shard is on the disk."""
        if self._unfinished is not None:
            self._unfinished.result()

    def _write(self, shard: Shard, pictures: Iterable[SourcePicture], tally: Tally) -> tuple[Path, str, int]:
        temporary = self._surroundings.folder / f"{shard.file}.{os.getpid()}{PARTIAL_SUFFIX}"
        sha256, position = hashlib.sha256(), 0
        with open(temporary, "wb") as file:
            for key, picture in zip(shard.places, pictures, strict=True):
                if (checked := self._checked(picture, tally)) is None:
                    continue
                label = int(picture.label)
                facts = {"path": picture.name} | json.loads(picture.facts or "{}")
                tally.add(position + tarfile.BLOCKSIZE, shard.number, label, checked)
                for extension, data in (
                    (checked.extension, checked.data),
                    ("cls", b"%d" % label),
                    ("json", json.dumps(facts).encode()),
                ):
                    member = tar_member(f"{key:09d}.{extension}", data)
                    sha256.update(member)
                    file.write(member)
                    position += len(member)
            end = bytes(2 * tarfile.BLOCKSIZE + -(position + 2 * tarfile.BLOCKSIZE) % RECORD_BYTES)
            sha256.update(end)
            file.write(end)
        return temporary, sha256.hexdigest(), position + len(end)

    def _index(self, shard: Shard, pictures: Iterable[SourcePicture], tally: Tally) -> tuple[None, str, int]:
        path = self._surroundings.folder / shard.file
        for picture in pictures:
            checked = self._checked(picture, tally)
            if checked is not None and checked.data != picture.read():
                reason = "not of 8-bit grey or RGB, or a format that only rewriting (--out) can use"
                self._skip(picture, reason, tally)
            elif checked is not None:
                assert picture.offset is not None
                tally.add(picture.offset, shard.number, int(picture.label), checked)
        return None, file_sha256(path), path.stat().st_size

    def _checked(self, picture: SourcePicture, tally: Tally) -> CheckedPicture | None:
        self._on_picture()
        try:
            return check_picture(picture.read(), self._surroundings.rules)
        except OSError as error:
            self._check_roots()
            self._skip(picture, error.strerror or str(error), tally, unreadable=True)
        except ValueError as error:
            self._skip(picture, str(error), tally)
        return None

    def _skip(self, picture: SourcePicture, reason: str, tally: Tally, unreadable: bool = False) -> None:
        label = int(picture.label)
        tally.skipped.append(
            Skipped(split=picture.split, label=label, name=picture.name, reason=reason, unreadable=unreadable)
        )
        self._on_skip(tally.skipped)

    def _check_roots(self) -> None:
        """A picture that cannot be read is bad; a file system that is gone is not a thousand bad pictures."""
        for root, device in self._surroundings.roots:
            try:
                found: int | None = os.stat(root).st_dev
            except OSError:
                found = None
            if found != device:
                raise RunError(f"{root}: the folder of the pictures is gone; once it is back, give the same command")

    def _keep(self, shard: Shard, temporary: Path | None, rows: list[tuple[int, ...]], report: ShardReport) -> None:
        if temporary is not None:
            to_disk(temporary)
            os.replace(temporary, self._surroundings.folder / shard.file)
            to_disk(self._surroundings.folder)
        path = rows_path(self._surroundings.work, shard)
        np.save(path, np.array(rows, INDEX_DTYPE), allow_pickle=False)
        to_disk(path)
        write_whole(report_path(self._surroundings.work, shard), report.model_dump_json())


def report_path(work: Path, shard: Shard) -> Path:
    """Where the report of a shard is once the shard is finished."""
    return work / f"{shard.name}.json"


def read_report(work: Path, shard: Shard) -> ShardReport | None:
    """What became of a shard; None if it is not finished."""
    with suppress(FileNotFoundError):
        return ShardReport.model_validate_json(report_path(work, shard).read_bytes())
    return None


def finished_report(work: Path, shard: Shard) -> ShardReport:
    """What became of a finished shard."""
    report = read_report(work, shard)
    assert report is not None
    return report


def rows_path(work: Path, shard: Shard) -> Path:
    """File of the rows of a finished shard, of ``INDEX_DTYPE``, in the order of the tar."""
    return work / f"{shard.name}.npy"


def printable(name: str) -> str:
    """A file's name with its control characters and undecodable bytes written out."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in name)


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


def tar_member(name: str, data: bytes) -> bytes:
    """Header, content and padding of a file in a tar, as ``tarfile`` writes it but ten times as fast."""
    encoded, size = name.encode("ascii"), b"%011o\0" % len(data)
    assert len(encoded) <= NAME_BYTES
    checksum = b"%06o\0 " % (_TEMPLATE_SUM + sum(encoded) + sum(size))
    parts = (
        encoded.ljust(NAME_BYTES, b"\0"),
        _TEMPLATE[NAME_BYTES : SIZE_FIELD.start],
        size,
        _TEMPLATE[SIZE_FIELD.stop : CHECKSUM_FIELD.start],
        checksum,
        _TEMPLATE[CHECKSUM_FIELD.stop :],
        data,
        bytes(-len(data) % tarfile.BLOCKSIZE),
    )
    return b"".join(parts)
