"""What a command gives to its workers, and what they leave on the disk: plain JSON, whatever characters names have."""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cbd_fast.errors import printable
from cbd_fast.files import write_atomically
from cbd_fast.shards.manifest import ShardRecord
from cbd_fast.shards.writing.validate_image import ImageRules

CATALOG_NAME = "catalog.sqlite"  # in the work folder


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """An image that was left out.

    Attributes:
        split: the image's split.
        label: number of the image's class.
        name: the image's name in its source.
        reason: why it was left out.
        unreadable: whether its file could not be read, which may pass.
    """

    split: str
    label: int
    name: str
    reason: str
    unreadable: bool = False

    def __str__(self) -> str:
        return printable(f"{self.split}/{self.name}: {self.reason}")


@dataclass(frozen=True, kw_only=True)
class WorkItem:
    """One shard to be made: the images at ``start`` up to ``stop`` of the catalog's order go into one tar.

    Attributes:
        split: the shard's split.
        number: number of the shard in its split.
        file: path of the tar below the folder of the shards.
        start: position of the first image in the catalog's order.
        stop: position after the last image.
    """

    split: str
    number: int
    file: str
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Name of the item's files in the work folder, without their extensions."""
        return f"{self.split}-{self.number:06d}"

    @property
    def positions(self) -> range:
        """Positions of the images in the catalog's order."""
        return range(self.start, self.stop)


@dataclass(frozen=True, kw_only=True)
class ShardReport:
    """What became of one shard, beside its entries of the index. A shard is finished when its report is there.

    Attributes:
        record: the shard's part of the manifest.
        skipped: images that were left out.
        num_converted: images whose format or mode had to be changed.
        num_resized: images that were shrunk.
        num_oriented: images with an orientation tag.
        num_bare: images of which metadata was removed that a training decoder stumbles over.
        num_paged: images that are the first of several pages or frames.
        num_deep: images that had more than 8 bits per sample.
    """

    record: ShardRecord
    skipped: list[Skipped]
    num_converted: int
    num_resized: int
    num_oriented: int
    num_bare: int = 0
    num_paged: int = 0
    num_deep: int = 0

    def write(self, work: Path, item: WorkItem) -> None:
        """Says that a shard is finished."""
        write_atomically(report_path(work, item), json.dumps(asdict(self) | {"record": self.record.model_dump()}))


@dataclass(frozen=True, kw_only=True)
class WorkPlan:
    """What the workers do together.

    Attributes:
        folder: the folder of the shards.
        work: the folder of the catalog, of reports and of entries.
        catalog: file of the finished catalog.
        rules: how images are checked and stored.
        roots: each folder that images are read from, with the device it was on.
        in_place: whether the tars are somebody else's, to be indexed where they are.
        items: the shards that are to be made.
        num_bad: images that were left out of shards made before.
        num_bad_allowed: images that may be left out; more end the command.
    """

    folder: Path
    work: Path
    catalog: Path
    rules: ImageRules
    roots: list[tuple[str, int]]
    in_place: bool = False
    items: list[WorkItem]
    num_bad: int = 0
    num_bad_allowed: int

    def to_json(self) -> str:
        """The whole plan, for another process."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> "WorkPlan":
        """The plan that ``to_json`` wrote."""
        values: dict[str, Any] = json.loads(text)
        return cls(
            **values
            | {name: Path(values[name]) for name in ("folder", "work", "catalog")}
            | {"rules": ImageRules(**values["rules"]), "items": [WorkItem(**item) for item in values["items"]]}
        )


def report_path(work: Path, item: WorkItem) -> Path:
    """The file of a shard's report, which is there once the shard is finished."""
    return work / f"{item.name}.json"


def range_path(work: Path, item: WorkItem) -> Path:
    """The file of the range of a shard's images of more than 8 bits, which is there once they are measured."""
    return work / f"{item.name}.range.json"


def entries_path(work: Path, item: WorkItem) -> Path:
    """The file of a finished shard's entries, ``(n,)`` of ``INDEX_DTYPE`` in the order of the tar."""
    return work / f"{item.name}.npy"


def read_report(work: Path, item: WorkItem) -> ShardReport | None:
    """What became of a shard; None if it is not finished."""
    with suppress(FileNotFoundError):
        values = json.loads(report_path(work, item).read_bytes())
        values["record"] = ShardRecord.model_validate(values["record"])
        values["skipped"] = [Skipped(**skip) for skip in values["skipped"]]
        return ShardReport(**values)
    return None


def finished_report(work: Path, item: WorkItem) -> ShardReport:
    """What became of a finished shard."""
    report = read_report(work, item)
    assert report is not None
    return report
