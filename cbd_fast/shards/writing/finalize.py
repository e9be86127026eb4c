"""What finished shards are put together to: index, list of the images left out, and manifest."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cbd_fast.errors import RunError
from cbd_fast.files import fsync_path
from cbd_fast.shards.index import file_crc32, write_index
from cbd_fast.shards.manifest import Manifest, Recipe, SplitRecord
from cbd_fast.shards.writing.work_items import Skipped, WorkItem, finished_report, rows_path

SKIPPED_NAME = "skipped.csv"
SKIPPED_COLUMNS = ("split", "label", "name", "reason")


@dataclass(frozen=True, kw_only=True)
class WrittenDataset:
    """What became of a dataset.

    Attributes:
        manifest: of the folder.
        skipped: images that were left out.
        num_converted: images whose format or mode had to be changed.
        num_resized: images that were shrunk.
        num_oriented: images with an orientation tag, which is ignored.
        is_new: false if the folder already held exactly this dataset.
    """

    manifest: Manifest
    skipped: list[Skipped] = field(default_factory=list)
    num_converted: int = 0
    num_resized: int = 0
    num_oriented: int = 0
    is_new: bool = True


def assemble(
    folder: Path, work: Path, shards: list[WorkItem], classes: list[str], recipe: Recipe, notes: list[str]
) -> WrittenDataset:
    """Puts index and list of skipped images together out of finished shards; the manifest is not yet written.

    Raises:
        RunError: a split, or a class of the training split, has no image that can be used.
    """
    reports = {shard.name: finished_report(work, shard) for shard in shards}
    skipped = [skip for report in reports.values() for skip in report.skipped]
    write_skipped(folder / SKIPPED_NAME, skipped)
    splits: dict[str, SplitRecord] = {}
    for split in dict.fromkeys(shard.split for shard in shards):
        parts = [shard for shard in shards if shard.split == split]
        path = folder / f"{split}.index.npy"
        counts = write_index(path, [rows_path(work, shard) for shard in parts], len(classes))
        _check_classes(split, counts, classes, [skip for shard in parts for skip in reports[shard.name].skipped])
        splits[split] = SplitRecord(
            num_images=int(counts.sum()),
            class_counts=counts.tolist(),
            index=path.name,
            index_crc32=file_crc32(path),
            shards=[reports[shard.name].record for shard in parts],
        )
    return WrittenDataset(
        manifest=Manifest(classes=classes, splits=splits, recipe=recipe, num_skipped=len(skipped), notes=notes),
        skipped=skipped,
        num_converted=sum(report.num_converted for report in reports.values()),
        num_resized=sum(report.num_resized for report in reports.values()),
        num_oriented=sum(report.num_oriented for report in reports.values()),
    )


def write_skipped(path: Path, skipped: Iterable[Skipped]) -> None:
    """Lists the images that were left out as CSV."""
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(SKIPPED_COLUMNS)
        writer.writerows([getattr(skip, column) for column in SKIPPED_COLUMNS] for skip in skipped)
    fsync_path(path)


def read_skipped(path: Path) -> list[Skipped]:
    """Reads what ``write_skipped`` wrote."""
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        return [Skipped(**row | {"label": int(row["label"])}) for row in csv.DictReader(file)]  # type: ignore[arg-type]


def _check_classes(split: str, counts: np.ndarray, classes: list[str], skipped: list[Skipped]) -> None:
    if not counts.any():
        raise RunError(f"none of the images of {split} can be decoded ({skipped[0].reason})")
    if split == "train" and (lost := [label for label, count in enumerate(counts) if not count]):
        reason = next(skip.reason for skip in skipped if skip.label in lost)
        raise RunError(
            f"none of the training images of {len(lost)} classes can be decoded, such as {classes[lost[0]]!r} "
            f"({reason}); mend them or remove the classes"
        )
