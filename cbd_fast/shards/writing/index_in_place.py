"""Foreign WebDataset shards, indexed where they are: nothing is added to their folder but index and manifest."""

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from cbd_fast.errors import InputError, RunError
from cbd_fast.files import PARTIAL_SUFFIX, locked_folder
from cbd_fast.shards.manifest import IN_PLACE, MANIFEST_NAME, is_indexed_in_place
from cbd_fast.shards.sources.base import Source
from cbd_fast.shards.writing.catalog import Catalog
from cbd_fast.shards.writing.finalize import SKIPPED_NAME, WrittenDataset, finalize_dataset
from cbd_fast.shards.writing.options import WriteListener, WriteOptions
from cbd_fast.shards.writing.recipe import choose_images
from cbd_fast.shards.writing.work_folder import CATALOG_NAME, RECIPE_NAME, WORK_FOLDER, begin_work, run_work
from cbd_fast.shards.writing.work_items import WorkItem

INDEXES = "*.index*.npy"


def index_dataset(
    source: Source, folder: Path, options: WriteOptions, *, num_workers: int, listener: WriteListener | None = None
) -> WrittenDataset:
    """Indexes tars that somebody else wrote. A folder that was indexed before is indexed anew.

    Args:
        source: the tars, as ``webdataset_source`` opens them.
        folder: the folder that holds the tars; it gets ``dataset.json``, an index per split and ``skipped.csv``.
        options: how images are checked; they stay as they are.
        num_workers: processes.
        listener: hears what happens.

    Raises:
        InputError: the tars are not in the convention, or the folder holds something that would be overwritten.
        RunError: too many images cannot be used, or the folder cannot be written.
    """
    _check_folder(folder)
    try:
        with locked_folder(folder / WORK_FOLDER) as work:
            try:
                written = _index(source, folder, work, options, num_workers, listener or WriteListener())
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
    source: Source, folder: Path, work: Path, options: WriteOptions, num_workers: int, listener: WriteListener
) -> WrittenDataset:
    listener.note("listing the images")
    with closing(Catalog(work / CATALOG_NAME)) as catalog:
        recipe, notes = choose_images(source, catalog, options)
        recipe = recipe.model_copy(update={"source": IN_PLACE})
        begin_work(work, work, recipe, catalog.digest(is_exact=True))
        catalog.order_by_offset()
        items, classes = _plan(folder, catalog), catalog.classes
    run_work(folder, work, source.roots, items, options, num_workers, listener, in_place=True)
    # until the new manifest is written, these would not go with the new index
    for old in (folder / MANIFEST_NAME, *folder.glob(INDEXES), *folder.glob(INDEXES + PARTIAL_SUFFIX)):
        old.unlink(missing_ok=True)
    return finalize_dataset(folder, work, items, classes, recipe, notes, options)


def _plan(folder: Path, catalog: Catalog) -> list[WorkItem]:
    items = []
    for split in catalog.splits:
        start = 0
        for number, (path, num_images) in enumerate(catalog.files(split)):
            file = os.path.relpath(path, os.path.abspath(folder))
            items.append(WorkItem(split=split, number=number, file=file, start=start, stop=start + num_images))
            start += num_images
    return items


def _check_folder(folder: Path) -> None:
    if (folder / MANIFEST_NAME).exists():
        if not is_indexed_in_place(folder):
            raise InputError(f"{folder}: these shards have their index already; the loader reads them as they are")
    elif (folder / SKIPPED_NAME).exists() and not (folder / WORK_FOLDER).exists():
        raise InputError(f"{folder / SKIPPED_NAME}: is somebody else's; move it, or rewrite the shards with --out")
