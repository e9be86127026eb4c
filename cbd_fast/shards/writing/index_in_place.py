"""Foreign WebDataset shards, indexed where they are: nothing is added to their folder but index and manifest."""

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from cbd_fast.errors import InputError, RunError
from cbd_fast.files import locked_folder, write_atomically
from cbd_fast.shards.manifest import MANIFEST_NAME, read_manifest
from cbd_fast.shards.sources.image_folder import Source
from cbd_fast.shards.writing.catalog import Catalog
from cbd_fast.shards.writing.dataset_writer import (
    CATALOG_NAME,
    RECIPE_NAME,
    begin_work,
    check_is_whole,
    fill_catalog,
    run_shards,
)
from cbd_fast.shards.writing.finalize import SKIPPED_NAME, WrittenDataset, assemble
from cbd_fast.shards.writing.options import Progress, WriteOptions
from cbd_fast.shards.writing.work_items import WORK_FOLDER, WorkItem

IN_PLACE = "webdataset in place"


def index_dataset(
    source: Source, folder: Path, options: WriteOptions, *, num_workers: int, progress: Progress | None = None
) -> WrittenDataset:
    """Indexes tars that somebody else wrote. A folder that was indexed before is indexed anew.

    Args:
        source: of ``webdataset_source``.
        folder: that holds the tars; it gets ``dataset.json``, an index per split and ``skipped.csv``.
        options: how images are checked; they stay as they are.
        num_workers: processes.
        progress: told what happens.

    Raises:
        InputError: the tars are not in the convention, or the folder holds something that would be overwritten.
        RunError: too many images cannot be used, or the folder cannot be written.
    """
    progress = progress or Progress()
    _check_place(folder)
    try:
        with locked_folder(folder / WORK_FOLDER) as work:
            try:
                written = _index(source, folder, work, options, num_workers, progress)
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
    source: Source, folder: Path, work: Path, options: WriteOptions, num_workers: int, progress: Progress
) -> WrittenDataset:
    progress.note("listing the images")
    with closing(Catalog(work / CATALOG_NAME)) as catalog:
        recipe, notes = fill_catalog(source, catalog, options)
        recipe = recipe.model_copy(update={"source": IN_PLACE})
        begin_work(work, work, recipe, catalog.digest(is_exact=True))
        catalog.order_by_place()
        shards, classes = _plan(folder, catalog), catalog.classes
    run_shards(folder, work, source.roots, shards, options, num_workers, progress, in_place=True)
    # from here to the end they would be of another index
    for old in (folder / MANIFEST_NAME, *folder.glob("*.index*.npy")):
        old.unlink(missing_ok=True)
    written = assemble(folder, work, shards, classes, recipe, notes)
    check_is_whole(written, options, folder)
    write_atomically(folder / MANIFEST_NAME, written.manifest.to_json())
    return written


def _plan(folder: Path, catalog: Catalog) -> list[WorkItem]:
    shards = []
    for split in catalog.splits:
        first = 0
        for number, (path, num_images) in enumerate(catalog.files(split)):
            file = os.path.relpath(path, os.path.abspath(folder))
            shards.append(WorkItem(split=split, number=number, file=file, first=first, end=first + num_images))
            first += num_images
    return shards


def _check_place(folder: Path) -> None:
    if (folder / MANIFEST_NAME).exists():
        if read_manifest(folder).recipe.source != IN_PLACE:
            raise InputError(f"{folder}: these shards have their index already; the loader reads them as they are")
    elif (folder / SKIPPED_NAME).exists() and not (folder / WORK_FOLDER).exists():
        raise InputError(f"{folder / SKIPPED_NAME}: is somebody else's; move it, or rewrite the shards with --out")
