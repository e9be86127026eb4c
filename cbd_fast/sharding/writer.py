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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cbd_fast.errors import InputError, RunError
from cbd_fast.files import PARTIAL_SUFFIX, resumable_folder, write_whole
from cbd_fast.sharding.assembly import SKIPPED_NAME, WrittenDataset, assemble, read_skipped, write_skipped
from cbd_fast.sharding.listing import Listing, plan_shards
from cbd_fast.sharding.long_tail import LongTail
from cbd_fast.sharding.manifest import MANIFEST_NAME, Recipe, read_manifest
from cbd_fast.sharding.pictures import PictureRules
from cbd_fast.sharding.presets import check_preset
from cbd_fast.sharding.shard_writer import (
    WORK_FOLDER,
    Shard,
    ShardReport,
    Skipped,
    Surroundings,
    printable,
    read_report,
    report_path,
)
from cbd_fast.sharding.sources import Source
from cbd_fast.sharding.workers import Job, make_shards

LISTING_NAME = "listing.sqlite"
RECIPE_NAME = "recipe.json"
NUM_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class ShardSize:
    """Where one shard ends and the next begins: at whichever limit comes first."""

    num_bytes: int = 100 * 10**6
    num_pictures: int = 5000


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a dataset is made into.

    Attributes:
        seed: chooses the pictures of a long tail, and shuffles all pictures over the shards.
        size: of a shard.
        rules: how pictures are checked and stored.
        tail: the long tail to make of the training split, or None.
        preset: name of the published dataset that it must be, or None.
        max_bad_share: of the pictures; if more cannot be used, that is an error at once.
        is_whole: whether any picture that cannot be used is an error in the end.
    """

    seed: int = 0
    size: ShardSize = field(default_factory=ShardSize)
    rules: PictureRules = field(default_factory=PictureRules)
    tail: LongTail | None = None
    preset: str | None = None
    max_bad_share: float = 0.01
    is_whole: bool = False

    def options(self) -> dict[str, Any]:
        """What decides about the bytes of the shards, for the recipe."""
        options: dict[str, Any] = {"shard_bytes": self.size.num_bytes, "shard_pictures": self.size.num_pictures}
        tail = {} if self.tail is None else asdict(self.tail)
        return options | asdict(self.rules) | tail


class Progress:
    """Told what happens while a dataset is written; this one ignores it."""

    def note(self, message: str) -> None:
        """Something that a person should know."""

    def start(self, num_pictures: int) -> None:
        """``num_pictures`` are to be looked at."""

    def update(self, num_pictures: int) -> None:
        """``num_pictures`` were looked at."""


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
    _check_place(out)
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
            return _found(out)
        if _is_recipe(folder / MANIFEST_NAME, recipe):  # interrupted at the very end
            shutil.rmtree(work)
            return _found(folder)
        if wanted.is_whole:
            _check_none_missing(listing, folder / SKIPPED_NAME)
        listing.order(wanted.seed)
        shards, classes = _plan(listing, wanted.size), listing.classes
    begin_work(work, folder, recipe, progress)
    _remove_leftovers(folder)
    surroundings = Surroundings(folder=folder, work=work, rules=wanted.rules, roots=devices(source.roots))
    run_shards(surroundings, shards, num_workers, wanted.max_bad_share, progress)
    _remove_leftovers(folder)
    written = assemble(surroundings, shards, classes, recipe, notes)
    if wanted.is_whole and (number := written.manifest.num_skipped):
        raise RunError(
            f"{out}: {number:,} pictures cannot be used, so this would not be {wanted.preset} as published; they are "
            f"listed in {folder / SKIPPED_NAME}: get them again, or allow them with --max-bad"
        )
    write_whole(folder / MANIFEST_NAME, written.manifest.to_json())
    shutil.rmtree(work)
    return written


def list_pictures(source: Source, listing: Listing, wanted: Wanted) -> tuple[Recipe, list[str]]:
    """Fills the listing with the pictures that are wanted; returns how they were chosen, and notes for people."""
    listing.add(source.pictures(), source.classes)
    notes = list(source.notes)
    if wanted.tail:
        notes += listing.keep_long_tail(wanted.tail, wanted.seed)
    if wanted.preset:
        check_preset(wanted.preset, listing, wanted.tail.num_val_per_class if wanted.tail else 0)
    options = {key: value for key, value in (source.options | wanted.options()).items() if value is not None}
    return Recipe(source=source.kind, options=options, seed=wanted.seed, input_sha256=listing.digest()), notes


def begin_work(work: Path, everything: Path, recipe: Recipe, progress: Progress) -> None:
    """Keeps what an interrupted command has done, or if it did something else, removes it.

    Args:
        work: folder of reports, rows and listing.
        everything: folder of all that an interrupted command may have left.
        recipe: of what is wanted now.
        progress: told about it.
    """
    if _is_recipe(work / RECIPE_NAME, recipe):
        return
    others = [path for path in everything.rglob("*") if path.is_file() and path.name != LISTING_NAME]
    for path in others:
        path.unlink()
    if any(path.name != SKIPPED_NAME for path in others):
        progress.note("what was half-made there is of other pictures or settings: starting anew")
    write_whole(work / RECIPE_NAME, recipe.model_dump_json())


def run_shards(
    surroundings: Surroundings, shards: list[Shard], num_workers: int, max_bad_share: float, progress: Progress
) -> None:
    """Makes the shards that are not finished."""
    finished: dict[str, ShardReport] = {}
    for shard in shards:
        if (report := read_report(surroundings.work, shard)) is None:
            continue
        path = surroundings.folder / shard.file
        is_there = path.is_file() and path.stat().st_size == report.record.num_bytes
        # what could not be read last time may be there now, as if nothing had ever happened
        if is_there and not any(skip.unreadable for skip in report.skipped):
            finished[shard.name] = report
        else:
            report_path(surroundings.work, shard).unlink()
    total = sum(len(shard.places) for shard in shards)
    done = sum(len(shard.places) for shard in shards if shard.name in finished)
    progress.start(total)
    progress.update(done)
    job = Job(
        surroundings=surroundings,
        listing=surroundings.work / LISTING_NAME,
        shards=[shard for shard in shards if shard.name not in finished],
        num_bad=sum(len(report.skipped) for report in finished.values()),
        num_bad_allowed=int(max_bad_share * total),
    )
    make_shards(job, num_workers, lambda number: progress.update(done + number))


def devices(roots: Iterable[Path]) -> list[tuple[str, int]]:
    """Each folder with the device that it is on."""
    return [(os.fspath(root), os.stat(root).st_dev) for root in roots]


def _plan(listing: Listing, size: ShardSize) -> list[Shard]:
    return [
        Shard(split=split, number=number, file=f"{split}-{number:06d}.tar", places=places)
        for split in listing.splits
        for number, places in enumerate(plan_shards(listing.sizes(split), size.num_bytes, size.num_pictures))
    ]


def _check_none_missing(listing: Listing, path: Path) -> None:
    missing = [
        Skipped(split=split, label=label, name=name, reason="No such file or directory")
        for split, label, name in listing.missing()
    ]
    if missing:
        write_skipped(path, missing)
        shown = ", ".join(f"{skip.split}/{printable(skip.name)}" for skip in missing[:NUM_SHOWN])
        raise RunError(f"{len(missing):,} of {len(listing):,} pictures are missing, such as {shown}; all are in {path}")


def _check_place(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; choose another --out")
    if out.exists() and any(out.iterdir()) and not (out / MANIFEST_NAME).is_file():
        raise InputError(f"{out}: already holds something else; choose another --out or empty it")


def _check_recipe(out: Path, recipe: Recipe) -> None:
    if (there := read_manifest(out).recipe) == recipe:
        return
    before, after = (each.model_dump(exclude={"options"}) | each.options for each in (there, recipe))
    keys = [key for key in before | after if before.get(key) != after.get(key)]
    changes = ", ".join(f"{key} {before.get(key)} there, {after.get(key)} asked for" for key in keys)
    raise InputError(f"{out}: already holds other shards ({changes}); choose another --out or remove it")


def _is_recipe(path: Path, recipe: Recipe) -> bool:
    """Whether a file holds this recipe, or a manifest with it."""
    try:
        there = json.loads(path.read_bytes())
        return Recipe.model_validate(there.get("recipe", there)) == recipe
    except (FileNotFoundError, ValueError):
        return False


def _found(folder: Path) -> WrittenDataset:
    manifest = read_manifest(folder)
    return WrittenDataset(manifest=manifest, skipped=read_skipped(folder / SKIPPED_NAME), is_new=False)


def _remove_leftovers(folder: Path) -> None:
    """Removes shards that were being written when a command was killed."""
    for path in folder.glob(f"*{PARTIAL_SUFFIX}"):
        path.unlink(missing_ok=True)
