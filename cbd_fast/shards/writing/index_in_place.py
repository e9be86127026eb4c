"""Foreign WebDataset shards, indexed where they are: nothing is added to their folder but index and manifest."""

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from cbd_fast.errors import InputError, RunError
from cbd_fast.files import PARTIAL_SUFFIX
from cbd_fast.folder_lock import locked_folder
from cbd_fast.shards.index import is_index
from cbd_fast.shards.manifest import IN_PLACE, MANIFEST_NAME, is_index_name, is_indexed_in_place, read_manifest
from cbd_fast.shards.sources.base import SPLITS, Source
from cbd_fast.shards.sources.own_shards import is_our_manifest
from cbd_fast.shards.writing.catalog import Catalog
from cbd_fast.shards.writing.finalize import SKIPPED_COLUMNS, SKIPPED_NAME, WrittenDataset, finalize_dataset
from cbd_fast.shards.writing.options import WriteListener, WriteOptions
from cbd_fast.shards.writing.recipe import choose_images
from cbd_fast.shards.writing.work_folder import RECIPE_NAME, WORK_FOLDER, begin_work, run_work
from cbd_fast.shards.writing.work_items import CATALOG_NAME, WorkItem


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
    _check_is_ours(folder, [MANIFEST_NAME, SKIPPED_NAME])
    work = folder / WORK_FOLDER
    if work.is_symlink() or (work.exists() and not work.is_dir()):
        raise InputError(f"{work}: is somebody else's, no folder of this command; move it")
    try:
        with locked_folder(folder):
            work.mkdir(exist_ok=True)
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
        _check_is_ours(folder, [MANIFEST_NAME, SKIPPED_NAME, *(f"{split}.index.npy" for split in catalog.splits)])
        recipe = recipe.model_copy(update={"source": IN_PLACE})
        begin_work(work, work, recipe, catalog.digest(is_exact=True))
        catalog.order_by_offset()
        items, classes = _plan(folder, catalog), catalog.classes
    run_work(folder, work, source.roots, items, options, num_workers, listener, in_place=True)
    _remove_old(folder)
    return finalize_dataset(folder, work, items, classes, recipe, notes, options)


def _remove_old(folder: Path) -> None:
    """Removes manifest and indexes of before, which would not go with the new index until the new manifest is there."""
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    for path in folder.glob("*.index*.npy*"):
        name = path.name.removesuffix(PARTIAL_SUFFIX)
        is_named = any(is_index_name(name, split) for split in SPLITS)
        if is_named and (path.name != name or is_index(path)):  # all others are somebody else's
            path.unlink(missing_ok=True)


def _plan(folder: Path, catalog: Catalog) -> list[WorkItem]:
    items = []
    for split in catalog.splits:
        start = 0
        for number, (path, num_images) in enumerate(catalog.files(split)):
            file = os.path.relpath(path, os.path.abspath(folder))
            items.append(WorkItem(split=split, number=number, file=file, start=start, stop=start + num_images))
            start += num_images
    return items


def _check_is_ours(folder: Path, names: list[str]) -> None:
    """Raises ``InputError`` if a file that is to be written is there and nothing that this command wrote."""
    is_indexed = is_our_manifest(folder / MANIFEST_NAME)
    if is_indexed and not is_indexed_in_place(folder):
        raise InputError(f"{folder}: these shards have their index already; the loader reads them as they are")
    for path in (folder / name for name in names if os.path.lexists(folder / name)):
        if path.name == MANIFEST_NAME:
            is_ours = is_indexed
        elif path.name == SKIPPED_NAME:
            is_ours = _is_our_list(path)
        else:
            is_ours = is_index(path) or (is_indexed and not _is_current(folder))
        if not is_ours:
            raise InputError(f"{path}: is somebody else's; move it, or rewrite the shards with --out")


def _is_current(folder: Path) -> bool:
    """Whether a folder's manifest, which is ours, is of this version: indexes of others had other columns."""
    try:
        read_manifest(folder)
    except InputError:
        return False
    return True


def _is_our_list(path: Path) -> bool:
    """Whether a file is a list of images left out, by its first line."""
    header = ",".join(SKIPPED_COLUMNS).encode() + b"\r\n"
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(len(header)) == header
