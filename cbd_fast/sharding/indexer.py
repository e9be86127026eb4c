"""Foreign WebDataset shards, indexed where they are: nothing is added to their folder but index and manifest."""

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from cbd_fast.errors import InputError, RunError
from cbd_fast.files import locked_folder, write_whole
from cbd_fast.sharding.assembly import SKIPPED_NAME, WrittenDataset, assemble
from cbd_fast.sharding.listing import Listing
from cbd_fast.sharding.manifest import MANIFEST_NAME, read_manifest
from cbd_fast.sharding.shard_writer import WORK_FOLDER, Shard, Surroundings
from cbd_fast.sharding.sources import Source
from cbd_fast.sharding.writer import LISTING_NAME, Progress, Wanted, begin_work, devices, list_pictures, run_shards

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
            progress.note("listing the pictures")
            with closing(Listing(work / LISTING_NAME)) as listing:
                recipe, notes = list_pictures(source, listing, wanted)
                recipe = recipe.model_copy(update={"source": IN_PLACE})
                listing.order_by_place()
                shards, classes = _plan(folder, listing), listing.classes
            begin_work(work, work, recipe, progress)
            surroundings = Surroundings(
                folder=folder, work=work, rules=wanted.rules, roots=devices(source.roots), in_place=True
            )
            run_shards(surroundings, shards, num_workers, wanted.max_bad_share, progress)
            (folder / MANIFEST_NAME).unlink(missing_ok=True)  # from here to the end it would be of another index
            written = assemble(surroundings, shards, classes, recipe, notes)
            write_whole(folder / MANIFEST_NAME, written.manifest.to_json())
            shutil.rmtree(work)
    except InputError:
        shutil.rmtree(folder / WORK_FOLDER, ignore_errors=True)
        raise
    except (OSError, sqlite3.Error) as error:
        raise RunError(
            f"{folder}: the index could not be written ({error}); where nothing can be written, copy the shards or "
            "rewrite them with --out"
        ) from error
    return written


def _plan(folder: Path, listing: Listing) -> list[Shard]:
    shards = []
    for split in listing.splits:
        first = 0
        for number, (path, num_pictures) in enumerate(listing.files(split)):
            file = os.path.relpath(path, os.path.abspath(folder))
            places = range(first, first + num_pictures)
            shards.append(Shard(split=split, number=number, file=file, places=places))
            first = places.stop
    return shards


def _check_place(folder: Path) -> None:
    if (folder / MANIFEST_NAME).exists():
        if read_manifest(folder).recipe.source != IN_PLACE:
            raise InputError(f"{folder}: these shards have their index already; the loader reads them as they are")
    elif (folder / SKIPPED_NAME).exists():
        raise InputError(f"{folder / SKIPPED_NAME}: is somebody else's; move it, or rewrite the shards with --out")
