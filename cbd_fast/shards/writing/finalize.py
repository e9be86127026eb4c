"""Finished shards made a dataset: index, list of the images left out, and manifest."""

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cbd_fast.errors import RunError, printable
from cbd_fast.files import write_atomically
from cbd_fast.shards.index import file_crc32, write_index
from cbd_fast.shards.manifest import IN_PLACE, MANIFEST_NAME, Manifest, Recipe, SplitRecord
from cbd_fast.shards.writing.duplicates import note_duplicates
from cbd_fast.shards.writing.options import WriteOptions
from cbd_fast.shards.writing.work_items import Skipped, WorkItem, entries_path, finished_report

SKIPPED_NAME = "skipped.csv"
SKIPPED_COLUMNS = ("split", "label", "name", "reason")


@dataclass(frozen=True, kw_only=True)
class WrittenDataset:
    """What became of a dataset.

    Attributes:
        manifest: manifest of the folder.
        skipped: images that were left out.
        num_converted: images whose format or mode had to be changed.
        num_resized: images that were shrunk.
        num_oriented: images with an orientation tag.
        num_bare: images of which metadata was removed that a training decoder stumbles over.
        num_paged: images that are the first of several pages or frames.
        is_new: false if the folder already held exactly this dataset.
    """

    manifest: Manifest
    skipped: list[Skipped] = field(default_factory=list)
    num_converted: int = 0
    num_resized: int = 0
    num_oriented: int = 0
    num_bare: int = 0
    num_paged: int = 0
    is_new: bool = True


def finalize_dataset(
    folder: Path,
    work: Path,
    items: list[WorkItem],
    classes: list[str],
    recipe: Recipe,
    notes: list[str],
    options: WriteOptions,
    sixteen_bit: str | None = None,
) -> WrittenDataset:
    """Makes a dataset of finished shards: writes the index, the list of images left out, and at last the manifest.

    Args:
        folder: the folder of the shards.
        work: the work folder, with the report and the entries of each shard.
        items: all shards.
        classes: names of the classes.
        recipe: how the shards were made.
        notes: what people should know.
        options: how many images may be left out.
        sixteen_bit: the range of images of more than 8 bits, as the manifest has it.

    Raises:
        RunError: a split, or a class of the training split, has no image that can be used, or too many were left out.
    """
    notes = [*notes, *note_duplicates(folder, work, items, recipe.source == IN_PLACE)]
    content = {"classes": classes, "recipe": recipe, "notes": notes, "sixteen_bit": sixteen_bit}
    written = _assemble(folder, work, items, content)
    check_is_whole(written, options, folder)
    write_atomically(folder / MANIFEST_NAME, written.manifest.to_json())
    return written


def _assemble(folder: Path, work: Path, items: list[WorkItem], content: dict[str, Any]) -> WrittenDataset:
    """Writes index and list of images left out; the manifest, which gets ``content`` too, is not yet written.

    Raises:
        RunError: a split, or a class of the training split, has no image that can be used.
    """
    reports = {item.name: finished_report(work, item) for item in items}
    skipped = [skip for report in reports.values() for skip in report.skipped]
    write_skipped(folder / SKIPPED_NAME, skipped)
    classes, splits = content["classes"], dict[str, SplitRecord]()
    for split in dict.fromkeys(item.split for item in items):
        parts = [item for item in items if item.split == split]
        path = folder / f"{split}.index.npy"
        counts = write_index(path, [entries_path(work, item) for item in parts], len(classes))
        _check_classes(split, counts, classes, [skip for item in parts for skip in reports[item.name].skipped])
        splits[split] = SplitRecord(
            num_images=int(counts.sum()),
            class_counts=counts.tolist(),
            index=path.name,
            index_crc32=file_crc32(path),
            shards=[reports[item.name].record for item in parts],
        )
    return WrittenDataset(
        manifest=Manifest(splits=splits, num_skipped=len(skipped), **content),
        skipped=skipped,
        num_converted=sum(report.num_converted for report in reports.values()),
        num_resized=sum(report.num_resized for report in reports.values()),
        num_oriented=sum(report.num_oriented for report in reports.values()),
        num_bare=sum(report.num_bare for report in reports.values()),
        num_paged=sum(report.num_paged for report in reports.values()),
    )


def check_is_whole(written: WrittenDataset, options: WriteOptions, folder: Path) -> None:
    """Raises ``RunError`` if more images were left out than are allowed."""
    number, manifest = written.manifest.num_skipped, written.manifest
    listed = f"they are listed in {folder / SKIPPED_NAME}"
    if options.is_whole and number:
        raise RunError(
            f"{number:,} images cannot be used, so this is not {options.preset} as published; {listed}: get them "
            "again, or allow them with --max-bad"
        )
    total = number + sum(split.num_images for split in manifest.splits.values())
    if number > options.num_bad_allowed(total):
        raise RunError(
            f"{folder}: was made without {number:,} images that cannot be used, and "
            f"{options.num_bad_allowed(total):,} are allowed (--max-bad, --strict); {listed}"
        )


def write_skipped(path: Path, skipped: Iterable[Skipped]) -> None:
    """Writes the images that were left out to a CSV file."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(SKIPPED_COLUMNS)
    for skip in skipped:
        # as it may be shown, but for bytes that are no text, by which a file is found again, and line breaks
        name = "\n".join(printable(part, keep_bytes=True) for part in skip.name.split("\n"))
        writer.writerow([skip.split, skip.label, name, printable(skip.reason)])
    write_atomically(path, text.getvalue())


def read_skipped(path: Path) -> list[Skipped]:
    """The images in a file of ``write_skipped``."""
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
