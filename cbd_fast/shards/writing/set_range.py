"""The one range of values by which all images of more than 8 bits of a set become 8 bits.

Shards that hold such images are measured first and made when all of them are: what a worker finds reaches the disk, so
the range depends neither on the workers nor on interruptions.
"""

import json
from collections.abc import Iterable
from dataclasses import replace
from functools import reduce
from operator import or_
from pathlib import Path

from cbd_fast.files import write_atomically
from cbd_fast.shards.writing.deep_pixels import FULL, FULL_RANGE, MEASURE, RANGE, ValueRange, format_range
from cbd_fast.shards.writing.validate_image import ImageRules
from cbd_fast.shards.writing.work_items import WorkItem, finished_report, range_path, report_path

RANGE_NAME = "range.json"  # of the whole set


def write_shard_range(path: Path, found: ValueRange | None, is_complete: bool) -> None:
    """Writes what a worker has measured.

    Args:
        path: the file, which says that the shard was measured.
        found: range of those of its images that have more than 8 bits and can be decoded.
        is_complete: whether all of its images could be read; if not, they may be the next time.
    """
    values = None if found is None else [found.real, found.stated, found.is_stated]
    write_atomically(path, json.dumps({"range": values, "is_complete": is_complete}))


def measuring_rules(rules: ImageRules, work: Path, items: Iterable[WorkItem]) -> ImageRules | None:
    """Rules by which shards with images of more than 8 bits are measured, not made; None if the range is given.

    What was measured while images could not be read is forgotten.
    """
    if rules.sixteen_bit not in (None, RANGE):
        return None
    for item in items:
        path = range_path(work, item)
        if path.exists() and not json.loads(path.read_bytes())["is_complete"]:
            path.unlink()
    return replace(rules, sixteen_bit=MEASURE)


def measured_rules(rules: ImageRules, work: Path, items: Iterable[WorkItem]) -> ImageRules:
    """Rules with the range over all shards that were measured; shards that were made with another are made again."""
    measured = [item for item in items if range_path(work, item).exists()]
    if not measured:
        return rules
    found = [json.loads(range_path(work, item).read_bytes())["range"] for item in measured]
    ranges = [
        ValueRange(real=tuple(real), stated=tuple(stated), is_stated=is_stated)
        for real, stated, is_stated in filter(None, found)
    ]
    origin, low_and_high = "nothing could be decoded", FULL_RANGE
    if ranges:
        whole = reduce(or_, ranges)
        is_real = rules.sixteen_bit == RANGE
        low_and_high = whole.real if is_real else whole.stated
        origin = "as their files say" if whole.is_stated and not is_real else "the lowest and highest of all of them"
    text = json.dumps({"sixteen_bit": format_range(*low_and_high), "origin": origin})
    path = work / RANGE_NAME
    if path.exists() and path.read_text() != text:
        for item in measured:
            report_path(work, item).unlink(missing_ok=True)
    write_atomically(path, text)
    return replace(rules, sixteen_bit=format_range(*low_and_high))


def range_made(rules: ImageRules, work: Path, items: Iterable[WorkItem]) -> tuple[str | None, list[str]]:
    """By which range images of more than 8 bits were made 8 bits, and what people should know of it.

    Returns:
        ``LO,HI``, or None if there were no such images; and notes.
    """
    if not (num_deep := sum(finished_report(work, item).num_deep for item in items)):
        return None, []
    path, text, origin = work / RANGE_NAME, rules.sixteen_bit, "as --sixteen-bit says"
    if path.exists():
        values = json.loads(path.read_bytes())
        text, origin = values["sixteen_bit"], values["origin"]
    made = format_range(*FULL_RANGE) if text in (None, FULL) else text
    low, high = made.split(",")
    note = f"{num_deep:,} images of more than 8 bits per sample: {low} became 0 and {high} became 255 ({origin}; "
    return made, [note + "--sixteen-bit says others)"]
