"""What a command tells its workers, and what they leave on the disk: plain JSON, whatever characters names have."""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cbd_fast.files import write_atomically
from cbd_fast.shards.manifest import ShardRecord
from cbd_fast.shards.writing.validate_image import ImageRules

WORK_FOLDER = ".cbd_fast-work"  # below the half-made folder, or the folder of foreign shards


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """An image that was left out; ``unreadable`` if its file could not be read, which may pass."""

    split: str
    label: int
    name: str
    reason: str
    unreadable: bool = False

    def __str__(self) -> str:
        return f"{self.split}/{printable(self.name)}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class WorkItem:
    """What is to be done: the images at the places ``first`` up to ``end`` of the catalog's order go into one tar."""

    split: str
    number: int
    file: str
    first: int
    end: int

    @property
    def name(self) -> str:
        """Of its files in the work folder."""
        return f"{self.split}-{self.number:06d}"

    @property
    def places(self) -> range:
        """In the catalog's order."""
        return range(self.first, self.end)


@dataclass(frozen=True, kw_only=True)
class ShardReport:
    """What became of one shard, beside its rows of the index. A shard is finished when its report is there."""

    record: ShardRecord
    skipped: list[Skipped]
    num_converted: int
    num_resized: int
    num_oriented: int

    def write(self, work: Path, shard: WorkItem) -> None:
        """Says that a shard is finished."""
        write_atomically(report_path(work, shard), json.dumps(asdict(self) | {"record": self.record.model_dump()}))


@dataclass(frozen=True, kw_only=True)
class WorkPlan:
    """What the workers do together.

    Attributes:
        folder: of the shards.
        work: folder of the catalog, of reports and of rows.
        catalog: the finished catalog.
        rules: how images are checked and stored.
        roots: each folder that images are read from, with the device it was on.
        in_place: whether the tars are somebody else's, to be indexed where they are.
        shards: those that are to be made.
        num_bad: images that were left out of shards made before.
        num_bad_allowed: more end the command.
    """

    folder: Path
    work: Path
    catalog: Path
    rules: ImageRules
    roots: list[tuple[str, int]]
    in_place: bool = False
    shards: list[WorkItem]
    num_bad: int = 0
    num_bad_allowed: int

    def to_json(self) -> str:
        """Everything, for another process."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> "WorkPlan":
        """What ``to_json`` wrote."""
        values: dict[str, Any] = json.loads(text)
        return cls(
            **values
            | {name: Path(values[name]) for name in ("folder", "work", "catalog")}
            | {"rules": ImageRules(**values["rules"]), "shards": [WorkItem(**shard) for shard in values["shards"]]}
        )


def report_path(work: Path, shard: WorkItem) -> Path:
    """Where the report of a shard is once the shard is finished."""
    return work / f"{shard.name}.json"


def rows_path(work: Path, shard: WorkItem) -> Path:
    """File of the rows of a finished shard, of ``INDEX_DTYPE``, in the order of the tar."""
    return work / f"{shard.name}.npy"


def read_report(work: Path, shard: WorkItem) -> ShardReport | None:
    """What became of a shard; None if it is not finished."""
    with suppress(FileNotFoundError):
        values = json.loads(report_path(work, shard).read_bytes())
        values["record"] = ShardRecord.model_validate(values["record"])
        values["skipped"] = [Skipped(**skip) for skip in values["skipped"]]
        return ShardReport(**values)
    return None


def finished_report(work: Path, shard: WorkItem) -> ShardReport:
    """What became of a finished shard."""
    report = read_report(work, shard)
    assert report is not None
    return report


def printable(name: str) -> str:
    """A file's name with its control characters and undecodable bytes written out."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in name)
