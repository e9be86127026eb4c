"""The work folder: what a command keeps while it makes shards, so that the same command goes on when interrupted.

It holds the catalog, the recipe, and the report and the entries of each finished shard.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path

from cbd_fast.errors import InputError, RunError
from cbd_fast.files import write_atomically
from cbd_fast.shards.manifest import FORMAT_VERSION, Recipe
from cbd_fast.shards.writing.finalize import SKIPPED_NAME, write_skipped
from cbd_fast.shards.writing.options import WriteListener, WriteOptions
from cbd_fast.shards.writing.recipe import describe_changes
from cbd_fast.shards.writing.work_items import ShardReport, WorkItem, WorkPlan, read_report, report_path
from cbd_fast.shards.writing.worker_pool import TooManyBadError, make_shards

WORK_FOLDER = ".cbd_fast-work"  # below the half-made folder, or the folder of foreign shards
CATALOG_NAME = "catalog.sqlite"
RECIPE_NAME = "recipe.json"


def begin_work(work: Path, everything: Path, recipe: Recipe, exact_digest: str) -> None:
    """Keeps what an interrupted command has done.

    Args:
        work: the work folder.
        everything: the folder of all that an interrupted command may have left.
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
            "give the same command to go on with them, or remove that folder to start anew"
        )
    for other in everything.rglob("*"):  # nothing to be trusted was done
        if other.is_file() and other.name != CATALOG_NAME:
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
    finished = _finished_items(folder, work, items)
    total = sum(len(item.positions) for item in items)
    done = sum(len(item.positions) for item in items if item.name in finished)
    listener.start(total)
    listener.update(done)
    plan = WorkPlan(
        folder=folder,
        work=work,
        catalog=work / CATALOG_NAME,
        rules=options.rules,
        roots=[(os.fspath(root), os.stat(root).st_dev) for root in roots],
        in_place=in_place,
        items=[item for item in items if item.name not in finished],
        num_bad=sum(len(report.skipped) for report in finished.values()),
        num_bad_allowed=options.num_bad_allowed(total),
    )
    try:
        make_shards(plan, num_workers, lambda num_images: listener.update(done + num_images))
    except TooManyBadError as error:
        reports = [report for item in items if (report := read_report(work, item))]
        known = [skip for report in reports for skip in report.skipped]
        path = work / SKIPPED_NAME
        write_skipped(path, dict.fromkeys([*known, *error.skipped]))
        raise RunError(f"{error}; all that were found so far are in {path}") from error


def _finished_items(folder: Path, work: Path, items: Iterable[WorkItem]) -> dict[str, ShardReport]:
    """Reports of the shards that need not be made, by name; reports of others are removed."""
    finished: dict[str, ShardReport] = {}
    for item in items:
        if (report := read_report(work, item)) is None:
            continue
        path = folder / item.file
        is_there = path.is_file() and path.stat().st_size == report.record.num_bytes
        # what could not be read last time may be there now, as if nothing had ever happened
        if is_there and not any(skip.unreadable for skip in report.skipped):
            finished[item.name] = report
        else:
            report_path(work, item).unlink()
    return finished


def _changes(begun: dict[str, object], recipe: Recipe) -> str:
    if begun.get("format_version") != FORMAT_VERSION:
        return "by another version of cbd_fast"
    return describe_changes(Recipe.model_validate(begun["recipe"]), recipe) or "the files have changed since"
