"""The work folder: what a command keeps while it makes shards, so that the same command goes on when interrupted.

It holds the catalog, the recipe, and the report and the entries of each finished shard.
"""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from cbd_fast.errors import InputError, RunError
from cbd_fast.files import PARTIAL_SUFFIX, write_atomically
from cbd_fast.shards.manifest import FORMAT_VERSION, MANIFEST_NAME, Recipe
from cbd_fast.shards.writing.duplicates import DUPLICATES_NAME
from cbd_fast.shards.writing.finalize import SKIPPED_NAME, write_skipped
from cbd_fast.shards.writing.options import WriteListener, WriteOptions
from cbd_fast.shards.writing.recipe import describe_changes
from cbd_fast.shards.writing.set_range import measured_rules, measuring_rules
from cbd_fast.shards.writing.validate_image import ImageRules
from cbd_fast.shards.writing.work_items import CATALOG_NAME, WorkItem, WorkPlan, range_path, read_report, report_path
from cbd_fast.shards.writing.worker_pool import TooManyBadError, make_shards

WORK_FOLDER = ".cbd_fast-work"  # below the half-made folder, or the folder of foreign shards
RECIPE_NAME = "recipe.json"
# What a command writes beside its work folder
OUR_FILES = re.compile(
    rf"\w+-\d{{6}}\.tar|\w+\.index\.npy|.*{re.escape(PARTIAL_SUFFIX)}|"
    + "|".join(map(re.escape, (MANIFEST_NAME, SKIPPED_NAME, DUPLICATES_NAME)))
)


def begin_work(work: Path, everything: Path, recipe: Recipe, exact_digest: str) -> None:
    """Keeps what an interrupted command has done.

    Args:
        work: the work folder.
        everything: the folder of all that an interrupted command may have left, and of what is somebody else's.
        recipe: recipe of what is asked for now.
        exact_digest: sha256 over the images, with all that is known of their files.

    Raises:
        InputError: the interrupted command was making something else.
    """
    path = work / RECIPE_NAME
    text = json.dumps({"format_version": FORMAT_VERSION, "recipe": recipe.model_dump(), "images": exact_digest})
    if path.exists() and path.read_text() == text:
        return
    if path.exists() and any(work.glob(f"*-{'[0-9]' * 6}.json")):  # with finished shards
        changes = _changes(json.loads(path.read_text()), recipe)
        raise InputError(
            f"{everything}: holds half-made shards of something else ({changes}); "
            "give the same command to go on with them, or empty that folder to start anew"
        )
    for other in (*work.iterdir(), *everything.iterdir()):  # nothing to be trusted was done
        is_ours = other.parent == work or OUR_FILES.fullmatch(other.name)
        if other.is_file() and is_ours and other.name != CATALOG_NAME:
            other.unlink()
    write_atomically(path, text)


def run_work(
    folder: Path,
    work: Path,
    roots: Iterable[Path],
    items: list[WorkItem],
    options: WriteOptions,
    num_workers: int,
    listener: WriteListener,
    in_place: bool = False,
) -> None:
    """Makes the shards that are not finished.

    Args:
        folder: the folder of the shards.
        work: the work folder, with its catalog.
        roots: folders that images are read from.
        items: all shards.
        options: how images are checked and stored, and how many may be bad.
        num_workers: processes.
        listener: hears how many images were looked at.
        in_place: whether the tars are somebody else's, to be indexed where they are.

    Raises:
        RunError: too many images cannot be used; those found so far are listed.
    """
    total = sum(len(item.positions) for item in items)
    listener.start(total)

    def make(rules: ImageRules, left: list[WorkItem]) -> None:
        reports = [report for item in items if (report := read_report(work, item))]
        done = total - sum(len(item.positions) for item in left)
        listener.update(done)
        plan = WorkPlan(
            folder=folder,
            work=work,
            catalog=work / CATALOG_NAME,
            rules=rules,
            roots=[(os.fspath(root), os.stat(root).st_dev) for root in roots],
            in_place=in_place,
            items=left,
            num_bad=sum(len(report.skipped) for report in reports),
            num_bad_allowed=options.num_bad_allowed(total),
        )
        make_shards(plan, num_workers, lambda num_images: listener.update(done + num_images))

    _forget_unfinished(folder, work, items)
    rules = options.rules
    try:
        if not in_place and (measuring := measuring_rules(rules, work, items)):
            make(measuring, [item for item in _left(work, items) if not range_path(work, item).exists()])
            rules = measured_rules(rules, work, items)
        if left := _left(work, items):
            make(rules, left)
    except TooManyBadError as error:
        reports = [report for item in items if (report := read_report(work, item))]
        known = [skip for report in reports for skip in report.skipped]
        path = work / SKIPPED_NAME
        write_skipped(path, dict.fromkeys([*known, *error.skipped]))
        raise RunError(f"{error}; all that were found so far are in {path}") from error


def _forget_unfinished(folder: Path, work: Path, items: Iterable[WorkItem]) -> None:
    """Removes the reports of shards that must be made again."""
    for item in items:
        if (report := read_report(work, item)) is None:
            continue
        path = folder / item.file
        is_there = path.is_file() and path.stat().st_size == report.record.num_bytes
        # what could not be read last time may be there now, as if nothing had ever happened
        if not is_there or any(skip.unreadable for skip in report.skipped):
            report_path(work, item).unlink()


def _left(work: Path, items: Iterable[WorkItem]) -> list[WorkItem]:
    """The shards that are not finished."""
    return [item for item in items if not report_path(work, item).exists()]


def _changes(begun: dict[str, object], recipe: Recipe) -> str:
    if begun.get("format_version") != FORMAT_VERSION:
        return "by another version of cbd_fast"
    return describe_changes(Recipe.model_validate(begun["recipe"]), recipe) or "the files have changed since"
