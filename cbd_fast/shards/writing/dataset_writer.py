"""A dataset as deterministic tar shards in the WebDataset convention, with their index and manifest.

Which images go into which shard, in which order and under which key follows from the source and the seed alone;
each shard is then made on its own, so any number of workers, and any interruption, gives the same bytes.
"""

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from cbd_fast.errors import AFTER_MENDING, InputError, RunError, describe_os_error, printable
from cbd_fast.files import PARTIAL_SUFFIX, resumable_folder
from cbd_fast.folder_lock import locked_folder
from cbd_fast.shards.manifest import MANIFEST_NAME, Recipe, read_manifest
from cbd_fast.shards.sources.base import Source
from cbd_fast.shards.writing.catalog import Catalog, plan_shards
from cbd_fast.shards.writing.finalize import (
    SKIPPED_NAME,
    WrittenDataset,
    check_is_whole,
    finalize_dataset,
    read_skipped,
    write_skipped,
)
from cbd_fast.shards.writing.options import ShardSize, WriteListener, WriteOptions
from cbd_fast.shards.writing.recipe import choose_images, describe_changes
from cbd_fast.shards.writing.set_range import range_made
from cbd_fast.shards.writing.work_folder import RECIPE_NAME, WORK_FOLDER, begin_work, run_work
from cbd_fast.shards.writing.work_items import CATALOG_NAME, Skipped, WorkItem

STAGED_FOLDER = ".cbd_fast-shards"  # the work folder in an --out that was there before
NUM_SHOWN = 5


def write_dataset(
    source: Source, out: Path, options: WriteOptions, *, num_workers: int, listener: WriteListener | None = None
) -> WrittenDataset:
    """Writes a dataset as shards, goes on with what was interrupted, or sees that ``out`` already holds exactly it.

    Args:
        source: classes and images.
        out: the folder to make; it may exist if it is empty.
        options: what to make of the images.
        num_workers: processes.
        listener: hears what happens.

    Raises:
        InputError: ``out`` holds something else, or the images are not what they should be.
        RunError: too many images cannot be used, or the disk did not take the shards; the same command goes on.
    """
    _check_out(out, source)
    listener = listener or WriteListener()
    try:
        with _staged(out, listener) as (folder, work):
            return _write(source, out, folder, work, options, num_workers, listener)
    except (OSError, sqlite3.Error) as error:
        reason = describe_os_error(error) if isinstance(error, OSError) else error
        raise RunError(f"{out}: the shards could not be written ({reason}); {AFTER_MENDING}") from error


@contextmanager
def _staged(out: Path, listener: WriteListener) -> Iterator[tuple[Path, Path]]:
    """The folder to write to, and the work folder in it, for this command alone.

    A folder that is not there yet is made beside its place and gets its name in the end. One that is there is written
    to where it is, the manifest last: it may be of another file system than the folder that it is in.
    """
    beside = out.with_name(out.name + PARTIAL_SUFFIX)
    if not out.is_dir() or not os.access(out, os.W_OK):
        with resumable_folder(out) as folder:
            work = folder / WORK_FOLDER
            work.mkdir(exist_ok=True)
            yield folder, work
        return
    if beside.exists():
        listener.note(f"{beside}: was left by a command that began before {out} was there, and may be removed")
    with locked_folder(out / STAGED_FOLDER) as work:
        try:
            yield out, work
        except InputError:
            if not (work / RECIPE_NAME).exists():  # nothing was done yet
                shutil.rmtree(work, ignore_errors=True)
            raise


def _write(
    source: Source,
    out: Path,
    folder: Path,
    work: Path,
    options: WriteOptions,
    num_workers: int,
    listener: WriteListener,
) -> WrittenDataset:
    listener.note("listing the images")
    with closing(Catalog(work / CATALOG_NAME)) as catalog:
        recipe, notes = choose_images(source, catalog, options)
        if (out / MANIFEST_NAME).exists():
            _check_recipe(out, recipe)
            shutil.rmtree(work if folder == out else folder)
            return _made_before(out, options)
        if _is_made(folder, recipe):  # interrupted at the very end
            shutil.rmtree(work)
            return _made_before(folder, options)
        begin_work(work, folder, recipe, catalog.digest(is_exact=True))
        _check_none_missing(catalog, folder, options)
        catalog.order(options.seed)
        items, classes = _plan(catalog, options.size), catalog.classes
    _remove_leftovers(folder)
    run_work(folder, work, source.roots, items, options, num_workers, listener)
    _remove_leftovers(folder)
    sixteen_bit, range_notes = range_made(options.rules, work, items)
    written = finalize_dataset(folder, work, items, classes, recipe, notes + range_notes, options, sixteen_bit)
    shutil.rmtree(work)
    return written


def _check_none_missing(catalog: Catalog, folder: Path, options: WriteOptions) -> None:
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


def _plan(catalog: Catalog, size: ShardSize) -> list[WorkItem]:
    return [
        WorkItem(
            split=split,
            number=number,
            file=f"{split}-{number:06d}.tar",
            start=positions.start,
            stop=positions.stop,
        )
        for split in catalog.splits
        for number, positions in enumerate(plan_shards(catalog.sizes(split), size.num_bytes, size.num_images))
    ]


def _check_out(out: Path, source: Source) -> None:
    for folder in source.searched:
        if out.resolve().is_relative_to(folder.resolve()):
            raise InputError(f"{out}: is inside {folder}, whose images are taken; choose an --out outside")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; choose another --out")
    if (out / MANIFEST_NAME).is_file():
        read_manifest(out)  # one of another version is refused before the images are listed
    elif out.exists() and any(out.iterdir()) and not (out / STAGED_FOLDER).is_dir():
        raise InputError(f"{out}: already holds something else; choose another --out or empty it")


def _check_recipe(out: Path, recipe: Recipe) -> None:
    if changes := describe_changes(read_manifest(out).recipe, recipe):
        raise InputError(f"{out}: already holds other shards ({changes}); choose another --out or remove it")


def _is_made(folder: Path, recipe: Recipe) -> bool:
    return (folder / MANIFEST_NAME).exists() and not describe_changes(read_manifest(folder).recipe, recipe)


def _made_before(folder: Path, options: WriteOptions) -> WrittenDataset:
    skipped = read_skipped(folder / SKIPPED_NAME)
    written = WrittenDataset(manifest=read_manifest(folder), skipped=skipped, is_new=False)
    check_is_whole(written, options, folder)
    return written


def _remove_leftovers(folder: Path) -> None:
    """Removes shards that were being written when a command was killed."""
    for path in folder.glob(f"*{PARTIAL_SUFFIX}"):
        path.unlink(missing_ok=True)
