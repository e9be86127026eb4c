"""A dataset as deterministic tar shards in the WebDataset convention, with their index and manifest.

Which pictures go into which shard, in which order and under which key follows from the source and the seed alone;
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
from cbd_fast.files import PARTIAL_SUFFIX, resumable_folder, write_whole
from cbd_fast.shards.manifest import MANIFEST_NAME, Recipe, read_manifest
from cbd_fast.shards.sources.image_folder import Source
from cbd_fast.shards.writing.catalog import Listing, plan_shards
from cbd_fast.shards.writing.finalize import SKIPPED_NAME, WrittenDataset, assemble, read_skipped, write_skipped
from cbd_fast.shards.writing.options import Progress, ShardSize, Wanted
from cbd_fast.shards.writing.presets import check_preset
from cbd_fast.shards.writing.work_items import (
    WORK_FOLDER,
    Job,
    Shard,
    ShardReport,
    Skipped,
    printable,
    read_report,
    report_path,
)
from cbd_fast.shards.writing.worker_pool import TooManyBadError, make_shards

LISTING_NAME = "listing.sqlite"
RECIPE_NAME = "recipe.json"
NUM_SHOWN = 5


def write_dataset(
    source: Source, out: Path, wanted: Wanted, *, num_workers: int, progress: Progress | None = None
) -> WrittenDataset:
    """Writes a dataset as shards, goes on with what was interrupted, or finds that ``out`` already holds exactly it.

    Args:
        source: classes and pictures.
        out: the folder to make; it may exist if it is empty.
        wanted: what to make of them.
        num_workers: processes.
        progress: told what happens.

    Raises:
        InputError: ``out`` holds something else, or the pictures are not what they should be.
        RunError: too many pictures cannot be used, or the disk did not take the shards; the same command goes on.
    """
    progress = progress or Progress()
    _check_place(out, source)
    try:
        with resumable_folder(out) as folder:
            return _write(source, out, folder, wanted, num_workers, progress)
    except (OSError, sqlite3.Error) as error:
        raise RunError(
            f"{out}: the shards could not be written ({error}); the same command goes on from there"
        ) from error


def _write(
    source: Source, out: Path, folder: Path, wanted: Wanted, num_workers: int, progress: Progress
) -> WrittenDataset:
    work = folder / WORK_FOLDER
    work.mkdir(exist_ok=True)
    progress.note("listing the pictures")
    with closing(Listing(work / LISTING_NAME)) as listing:
        recipe, notes = list_pictures(source, listing, wanted)
        if (out / MANIFEST_NAME).exists():
            _check_recipe(out, recipe)
            shutil.rmtree(folder)
            return _found(out, wanted)
        if _is_made(folder, recipe):  # interrupted at the very end
            shutil.rmtree(work)
            return _found(folder, wanted)
        begin_work(work, folder, recipe, listing.digest(is_exact=True))
        check_none_missing(listing, folder, wanted)
        listing.order(wanted.seed)
        shards, classes = _plan(listing, wanted.size), listing.classes
    _remove_leftovers(folder)
    run_shards(folder, work, source.roots, shards, wanted, num_workers, progress)
    _remove_leftovers(folder)
    written = assemble(folder, work, shards, classes, recipe, notes)
    check_is_whole(written, wanted, folder)
    write_whole(folder / MANIFEST_NAME, written.manifest.to_json())
    shutil.rmtree(work)
    return written


def list_pictures(source: Source, listing: Listing, wanted: Wanted) -> tuple[Recipe, list[str]]:
    """Fills the listing with the pictures that are wanted; returns how they were chosen, and notes for people."""
    listing.add(source.pictures(), source.classes)
    notes = list(source.notes)  # some are only known now
    if wanted.tail:
        notes += listing.keep_long_tail(wanted.tail, wanted.seed)
    if wanted.preset:
        notes += check_preset(wanted.preset, listing, wanted.tail.num_val_per_class if wanted.tail else 0)
    options = {key: value for key, value in (source.options | wanted.options()).items() if value is not None}
    return Recipe(source=source.kind, options=options, seed=wanted.seed, input_sha256=listing.digest()), notes


def begin_work(work: Path, everything: Path, recipe: Recipe, exact_digest: str) -> None:
    """Keeps what an interrupted command has done.

    Args:
        work: folder of reports, rows and listing.
        everything: folder of all that an interrupted command may have left.
        recipe: of what is wanted now.
        exact_digest: of the pictures, with all that is known of their files.

    Raises:
        InputError: it was doing something else.
    """
    path = work / RECIPE_NAME
    text = json.dumps({"recipe": recipe.model_dump(), "pictures": exact_digest})
    if path.exists() and path.read_text() == text:
        return
    if path.exists() and any(work.glob(f"*-{'[0-9]' * 6}.json")):  # with finished shards
        changes = _changes(Recipe.model_validate(json.loads(path.read_text())["recipe"]), recipe)
        raise InputError(
            f"{everything}: holds half-made shards of something else ({changes or 'the files have changed since'}); "
            "give the same command to go on with them, or remove that folder to start anew"
        )
    for other in everything.rglob("*"):  # nothing to be trusted was done
        if other.is_file() and other.name != LISTING_NAME:
            other.unlink()
    write_whole(path, text)


def run_shards(
    folder: Path,
    work: Path,
    roots: Iterable[Path],
    shards: list[Shard],
    wanted: Wanted,
    num_workers: int,
    progress: Progress,
    in_place: bool = False,
) -> None:
    """Makes the shards that are not finished.

    Raises:
        RunError: too many pictures cannot be used; those found so far are listed.
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
    job = Job(
        folder=folder,
        work=work,
        listing=work / LISTING_NAME,
        rules=wanted.rules,
        roots=[(os.fspath(root), os.stat(root).st_dev) for root in roots],
        in_place=in_place,
        shards=[shard for shard in shards if shard.name not in finished],
        num_bad=sum(len(report.skipped) for report in finished.values()),
        num_bad_allowed=wanted.num_bad_allowed(total),
    )
    try:
        make_shards(job, num_workers, lambda number: progress.update(done + number))
    except TooManyBadError as error:
        reports = [report for shard in shards if (report := read_report(work, shard))]
        found = [skip for report in reports for skip in report.skipped]
        path = work / SKIPPED_NAME
        write_skipped(path, dict.fromkeys([*found, *error.skipped]))
        raise RunError(f"{error}; all that were found so far are in {path}") from error


def check_none_missing(listing: Listing, folder: Path, wanted: Wanted) -> None:
    """Where the dataset must be whole, raises ``RunError`` if a listed file is not there, and lists all of them."""
    missing = listing.missing() if wanted.is_whole else ()
    skipped = [
        Skipped(split=split, label=label, name=name, reason="No such file or directory")
        for split, label, name in missing
    ]
    if skipped:
        path = folder / SKIPPED_NAME
        write_skipped(path, skipped)
        shown = ", ".join(f"{skip.split}/{printable(skip.name)}" for skip in skipped[:NUM_SHOWN])
        raise RunError(f"{len(skipped):,} of {len(listing):,} pictures are missing, such as {shown}; all are in {path}")


def check_is_whole(written: WrittenDataset, wanted: Wanted, folder: Path) -> None:
    """Raises ``RunError`` if more pictures were left out than are allowed."""
    number, manifest = written.manifest.num_skipped, written.manifest
    listed = f"they are listed in {folder / SKIPPED_NAME}"
    if wanted.is_whole and number:
        raise RunError(
            f"{number:,} pictures cannot be used, so this is not {wanted.preset} as published; {listed}: get them "
            "again, or allow them with --max-bad"
        )
    total = number + sum(split.num_pictures for split in manifest.splits.values())
    if number > wanted.num_bad_allowed(total):
        raise RunError(
            f"{folder}: was made without {number:,} pictures that cannot be used, and "
            f"{wanted.num_bad_allowed(total):,} are allowed (--max-bad, --strict); {listed}"
        )


def _plan(listing: Listing, size: ShardSize) -> list[Shard]:
    return [
        Shard(split=split, number=number, file=f"{split}-{number:06d}.tar", first=places.start, end=places.stop)
        for split in listing.splits
        for number, places in enumerate(plan_shards(listing.sizes(split), size.num_bytes, size.num_pictures))
    ]


def _check_place(out: Path, source: Source) -> None:
    for folder in source.searched:
        if out.resolve().is_relative_to(folder.resolve()):
            raise InputError(f"{out}: is inside {folder}, whose pictures are taken; choose an --out outside")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; choose another --out")
    if out.exists() and any(out.iterdir()) and not (out / MANIFEST_NAME).is_file():
        raise InputError(f"{out}: already holds something else; choose another --out or empty it")


def _check_recipe(out: Path, recipe: Recipe) -> None:
    if changes := _changes(read_manifest(out).recipe, recipe):
        raise InputError(f"{out}: already holds other shards ({changes}); choose another --out or remove it")


def _changes(there: Recipe, wanted: Recipe) -> str:
    before, after = (each.model_dump(exclude={"options"}) | each.options for each in (there, wanted))
    keys = [key for key in before | after if before.get(key) != after.get(key)]
    return ", ".join(f"{key} {before.get(key)} there, {after.get(key)} asked for" for key in keys)


def _is_made(folder: Path, recipe: Recipe) -> bool:
    return (folder / MANIFEST_NAME).exists() and not _changes(read_manifest(folder).recipe, recipe)


def _found(folder: Path, wanted: Wanted) -> WrittenDataset:
    skipped = read_skipped(folder / SKIPPED_NAME)
    found = WrittenDataset(manifest=read_manifest(folder), skipped=skipped, is_new=False)
    check_is_whole(found, wanted, folder)
    return found


def _remove_leftovers(folder: Path) -> None:
    """Removes shards that were being written when a command was killed."""
    for path in folder.glob(f"*{PARTIAL_SUFFIX}"):
        path.unlink(missing_ok=True)
