"""A dataset as deterministic tar shards in the WebDataset convention, with their index and manifest.

Which images go into which shard, in which order and under which key follows from the source and the seed alone;
each shard is then made on its own, so any number of workers, and any interruption, gives the same bytes.
"""

import json
import os
import shutil
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from cbd_fast.errors import InputError, RunError
from cbd_fast.files import PARTIAL_SUFFIX, resumable_folder, write_atomically
from cbd_fast.shards.manifest import MANIFEST_NAME, Recipe, read_manifest
from cbd_fast.shards.sources.image_folder import Source
from cbd_fast.shards.writing.catalog import Catalog, plan_shards
from cbd_fast.shards.writing.finalize import SKIPPED_NAME, WrittenDataset, assemble, read_skipped, write_skipped
from cbd_fast.shards.writing.options import Progress, ShardSize, WriteOptions
from cbd_fast.shards.writing.presets import check_preset
from cbd_fast.shards.writing.work_items import (
    WORK_FOLDER,
    ShardReport,
    Skipped,
    WorkItem,
    WorkPlan,
    printable,
    read_report,
    report_path,
)
from cbd_fast.shards.writing.worker_pool import TooManyBadError, make_shards

CATALOG_NAME = "catalog.sqlite"
RECIPE_NAME = "recipe.json"
NUM_SHOWN = 5


def write_dataset(
    source: Source, out: Path, options: WriteOptions, *, num_workers: int, progress: Progress | None = None
) -> WrittenDataset:
    """Writes a dataset as shards, goes on with what was interrupted, or finds that ``out`` already holds exactly it.

    Args:
        source: classes and images.
        out: the folder to make; it may exist if it is empty.
        options: what to make of them.
        num_workers: processes.
        progress: told what happens.

    Raises:
        InputError: ``out`` holds something else, or the images are not what they should be.
        RunError: too many images cannot be used, or the disk did not take the shards; the same command goes on.
    """
    progress = progress or Progress()
    _check_place(out, source)
    try:
        with resumable_folder(out) as folder:
            return _write(source, out, folder, options, num_workers, progress)
    except (OSError, sqlite3.Error) as error:
        raise RunError(
            f"{out}: the shards could not be written ({error}); the same command goes on from there"
        ) from error


def _write(
    source: Source, out: Path, folder: Path, options: WriteOptions, num_workers: int, progress: Progress
) -> WrittenDataset:
    work = folder / WORK_FOLDER
    work.mkdir(exist_ok=True)
    progress.note("listing the images")
    with closing(Catalog(work / CATALOG_NAME)) as catalog:
        recipe, notes = fill_catalog(source, catalog, options)
        if (out / MANIFEST_NAME).exists():
            _check_recipe(out, recipe)
            shutil.rmtree(folder)
            return _found(out, options)
        if _is_made(folder, recipe):  # interrupted at the very end
            shutil.rmtree(work)
            return _found(folder, options)
        begin_work(work, folder, recipe, catalog.digest(is_exact=True))
        check_none_missing(catalog, folder, options)
        catalog.order(options.seed)
        shards, classes = _plan(catalog, options.size), catalog.classes
    _remove_leftovers(folder)
    run_shards(folder, work, source.roots, shards, options, num_workers, progress)
    _remove_leftovers(folder)
    written = assemble(folder, work, shards, classes, recipe, notes)
    check_is_whole(written, options, folder)
    write_atomically(folder / MANIFEST_NAME, written.manifest.to_json())
    shutil.rmtree(work)
    return written


def fill_catalog(source: Source, catalog: Catalog, options: WriteOptions) -> tuple[Recipe, list[str]]:
    """Fills the catalog with the images that are wanted; returns how they were chosen, and notes for people."""
    catalog.add(source.images(), source.classes)
    notes = list(source.notes)  # some are only known now
    if options.tail:
        notes += catalog.keep_long_tail(options.tail, options.seed)
    if options.preset:
        notes += check_preset(options.preset, catalog, options.tail.num_val_per_class if options.tail else 0)
    decided = {key: value for key, value in (source.options | options.recipe_options()).items() if value is not None}
    return Recipe(source=source.kind, options=decided, seed=options.seed, input_sha256=catalog.digest()), notes


def begin_work(work: Path, everything: Path, recipe: Recipe, exact_digest: str) -> None:
    """Keeps what an interrupted command has done.

    Args:
        work: folder of reports, rows and catalog.
        everything: folder of all that an interrupted command may have left.
        recipe: of what is wanted now.
        exact_digest: of the images, with all that is known of their files.

    Raises:
        InputError: it was doing something else.
    """
    path = work / RECIPE_NAME
    text = json.dumps({"recipe": recipe.model_dump(), "images": exact_digest})
    if path.exists() and path.read_text() == text:
        return
    if path.exists() and any(work.glob(f"*-{'[0-9]' * 6}.json")):  # with finished shards
        changes = _changes(Recipe.model_validate(json.loads(path.read_text())["recipe"]), recipe)
        raise InputError(
            f"{everything}: holds half-made shards of something else ({changes or 'the files have changed since'}); "
            "give the same command to go on with them, or remove that folder to start anew"
        )
    for other in everything.rglob("*"):  # nothing to be trusted was done
        if other.is_file() and other.name != CATALOG_NAME:
            other.unlink()
    write_atomically(path, text)


def run_shards(
    folder: Path,
    work: Path,
    roots: Iterable[Path],
    shards: list[WorkItem],
    options: WriteOptions,
    num_workers: int,
    progress: Progress,
    in_place: bool = False,
) -> None:
    """Makes the shards that are not finished.

    Raises:
        RunError: too many images cannot be used; those found so far are listed.
    """
    finished: dict[str, ShardReport] = {}
    for shard in shards:
        if (report := read_report(work, shard)) is None:
            continue
        path = folder / shard.file
        is_there = path.is_file() and path.stat().st_size == report.record.num_bytes
        # what could not be read last time may be there now, as if nothing had ever happened
        if is_there and not any(skip.unreadable for skip in report.skipped):
            finished[shard.name] = report
        else:
            report_path(work, shard).unlink()
    total = sum(len(shard.places) for shard in shards)
    done = sum(len(shard.places) for shard in shards if shard.name in finished)
    progress.start(total)
    progress.update(done)
    plan = WorkPlan(
        folder=folder,
        work=work,
        catalog=work / CATALOG_NAME,
        rules=options.rules,
        roots=[(os.fspath(root), os.stat(root).st_dev) for root in roots],
        in_place=in_place,
        shards=[shard for shard in shards if shard.name not in finished],
        num_bad=sum(len(report.skipped) for report in finished.values()),
        num_bad_allowed=options.num_bad_allowed(total),
    )
    try:
        make_shards(plan, num_workers, lambda number: progress.update(done + number))
    except TooManyBadError as error:
        reports = [report for shard in shards if (report := read_report(work, shard))]
        found = [skip for report in reports for skip in report.skipped]
        path = work / SKIPPED_NAME
        write_skipped(path, dict.fromkeys([*found, *error.skipped]))
        raise RunError(f"{error}; all that were found so far are in {path}") from error


def check_none_missing(catalog: Catalog, folder: Path, options: WriteOptions) -> None:
    """Where the dataset must be whole, raises ``RunError`` if a listed file is not there, and lists all of them."""
    missing = catalog.missing() if options.is_whole else ()
    skipped = [
        Skipped(split=split, label=label, name=name, reason="No such file or directory")
        for split, label, name in missing
    ]
    if skipped:
        path = folder / SKIPPED_NAME
        write_skipped(path, skipped)
        shown = ", ".join(f"{skip.split}/{printable(skip.name)}" for skip in skipped[:NUM_SHOWN])
        raise RunError(f"{len(skipped):,} of {len(catalog):,} images are missing, such as {shown}; all are in {path}")


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


def _plan(catalog: Catalog, size: ShardSize) -> list[WorkItem]:
    return [
        WorkItem(split=split, number=number, file=f"{split}-{number:06d}.tar", first=places.start, end=places.stop)
        for split in catalog.splits
        for number, places in enumerate(plan_shards(catalog.sizes(split), size.num_bytes, size.num_images))
    ]


def _check_place(out: Path, source: Source) -> None:
    for folder in source.searched:
        if out.resolve().is_relative_to(folder.resolve()):
            raise InputError(f"{out}: is inside {folder}, whose images are taken; choose an --out outside")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; choose another --out")
    if out.exists() and any(out.iterdir()) and not (out / MANIFEST_NAME).is_file():
        raise InputError(f"{out}: already holds something else; choose another --out or empty it")


def _check_recipe(out: Path, recipe: Recipe) -> None:
    if changes := _changes(read_manifest(out).recipe, recipe):
        raise InputError(f"{out}: already holds other shards ({changes}); choose another --out or remove it")


def _changes(there: Recipe, options: Recipe) -> str:
    before, after = (each.model_dump(exclude={"options"}) | each.options for each in (there, options))
    keys = [key for key in before | after if before.get(key) != after.get(key)]
    return ", ".join(f"{key} {before.get(key)} there, {after.get(key)} asked for" for key in keys)


def _is_made(folder: Path, recipe: Recipe) -> bool:
    return (folder / MANIFEST_NAME).exists() and not _changes(read_manifest(folder).recipe, recipe)


def _found(folder: Path, options: WriteOptions) -> WrittenDataset:
    skipped = read_skipped(folder / SKIPPED_NAME)
    found = WrittenDataset(manifest=read_manifest(folder), skipped=skipped, is_new=False)
    check_is_whole(found, options, folder)
    return found


def _remove_leftovers(folder: Path) -> None:
    """Removes shards that were being written when a command was killed."""
    for path in folder.glob(f"*{PARTIAL_SUFFIX}"):
        path.unlink(missing_ok=True)
