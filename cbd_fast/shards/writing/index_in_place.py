"""Foreign WebDataset shards, indexed where they are: nothing is added to their folder but index and manifest."""

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from cbd_fast.errors import InputError, RunError
from cbd_fast.files import locked_folder, write_whole
from cbd_fast.shards.manifest import MANIFEST_NAME, read_manifest
from cbd_fast.shards.sources.image_folder import Source
from cbd_fast.shards.writing.catalog import Listing
from cbd_fast.shards.writing.dataset_writer import (
    LISTING_NAME,
    RECIPE_NAME,
    begin_work,
    check_is_whole,
    list_pictures,
    run_shards,
)
from cbd_fast.shards.writing.finalize import SKIPPED_NAME, WrittenDataset, assemble
from cbd_fast.shards.writing.options import Progress, Wanted
from cbd_fast.shards.writing.work_items import WORK_FOLDER, Shard

IN_PLACE = "webdataset in place"


def index_dataset(
    source: Source, folder: Path, wanted: Wanted, *, num_workers: int, progress: Progress | None = None
) -> WrittenDataset:
    """Indexes tars that somebody else wrote. A folder that was indexed before is indexed anew.

    Args:
        source: of ``webdataset_source``.
        folder: that holds the tars; it gets ``dataset.json``, an index per split and ``skipped.csv``.
        wanted: how pictures are checked; they stay as they are.
        num_workers: processes.
        progress: told what happens.

    Raises:
        InputError: the tars are not in the convention, or the folder holds something that would be overwritten.
        RunError: too many pictures cannot be used, or the folder cannot be written.
    """
    progress = progress or Progress()
    _check_place(folder)
    try:
        with locked_folder(folder / WORK_FOLDER) as work:
            try:
                written = _index(source, folder, work, wanted, num_workers, progress)
            except InputError:
                if not (work / RECIPE_NAME).exists():  # nothing was done yet
                    shutil.rmtree(work)
                raise
            shutil.rmtree(work)
    except (OSError, sqlite3.Error) as error:
        raise RunError(
            f"{folder}: the index could not be written ({error}); where nothing can be written, copy the shards or "
            "rewrite them with --out"
        ) from error
    return written


def _index(
    source: Source, folder: Path, work: Path, wanted: Wanted, num_workers: int, progress: Progress
) -> WrittenDataset:
    progress.note("listing the pictures")
    with closing(Listing(work / LISTING_NAME)) as listing:
        recipe, notes = list_pictures(source, listing, wanted)
        recipe = recipe.model_copy(update={"source": IN_PLACE})
        begin_work(work, work, recipe, listing.digest(is_exact=True))
        listing.order_by_place()
        shards, classes = _plan(folder, listing), listing.classes
    run_shards(folder, work, source.roots, shards, wanted, num_workers, progress, in_place=True)
    # from here to the end they would be of another index
    for old in (folder / MANIFEST_NAME, *folder.glob("*.index*.npy")):
        old.unlink(missing_ok=True)
    written = assemble(folder, work, shards, classes, recipe, notes)
    check_is_whole(written, wanted, folder)
    write_whole(folder / MANIFEST_NAME, written.manifest.to_json())
    return written


def _plan(folder: Path, listing: Listing) -> list[Shard]:
    shards = []
    for split in listing.splits:
        first = 0
        for number, (path, num_pictures) in enumerate(listing.files(split)):
            file = os.path.relpath(path, os.path.abspath(folder))
            shards.append(Shard(split=split, number=number, file=file, first=first, end=first + num_pictures))
            first += num_pictures
    return shards


def _check_place(folder: Path) -> None:
    if (folder / MANIFEST_NAME).exists():
        if read_manifest(folder).recipe.source != IN_PLACE:
            raise InputError(f"{folder}: these shards have their index already; the loader reads them as they are")
    elif (folder / SKIPPED_NAME).exists() and not (folder / WORK_FOLDER).exists():
        raise InputError(f"{folder / SKIPPED_NAME}: is somebody else's; move it, or rewrite the shards with --out")
