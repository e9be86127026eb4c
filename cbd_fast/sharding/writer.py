"""Deterministic, atomic tar shards in the WebDataset convention, with their index and manifest.

Which pictures go into which shard, in which order and under which key follows from the source and the seed alone;
each shard is then written on its own, so any number of workers gives the same bytes.
"""

import csv
import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO

import numpy as np

from cbd_fast.errors import InputError, RunError
from cbd_fast.files import whole_folder
from cbd_fast.sharding.index import INDEX_DTYPE, write_index
from cbd_fast.sharding.manifest import (
    MANIFEST_NAME,
    Manifest,
    Recipe,
    ShardRecord,
    SplitRecord,
    read_manifest,
)
from cbd_fast.sharding.pictures import check_picture
from cbd_fast.sharding.sources import Source, SourcePicture, chosen_order

SKIPPED_NAME = "skipped.csv"


@dataclass(frozen=True, kw_only=True)
class ShardSize:
    """Where one shard ends and the next begins: at whichever limit comes first."""

    num_bytes: int = 100 * 10**6
    num_pictures: int = 5000


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A picture that was left out."""

    split: str
    label: int
    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class WrittenShard:
    """What became of one shard; ``rows`` is of ``INDEX_DTYPE``."""

    record: ShardRecord
    rows: np.ndarray
    skipped: list[Skipped]
    num_converted: int


@dataclass(frozen=True, kw_only=True)
class WrittenDataset:
    """What became of a dataset; ``is_new`` is false when the folder already held exactly it."""

    manifest: Manifest
    skipped: list[Skipped]
    num_converted: int
    is_new: bool


def write_dataset(
    source: Source,
    out: Path,
    *,
    seed: int,
    num_workers: int,
    size: ShardSize | None = None,
    on_picture: Callable[[], None] = lambda: None,
) -> WrittenDataset:
    """Writes a dataset as shards, or finds that ``out`` already holds exactly it.

    Args:
        source: classes and pictures.
        out: the folder to make; it may exist if it is empty.
        seed: shuffles the pictures over the shards.
        num_workers: shards that are written at a time.
        size: of a shard.
        on_picture: called from any thread after each picture.

    Raises:
        InputError: ``out`` holds something else, or no picture of some training class can be decoded.
        RunError: the disk did not take the shards.
    """
    size = size or ShardSize()
    recipe = _recipe(source, seed, size)
    try:
        if out.exists() and (existing := _existing(out, recipe)):
            return existing
        with whole_folder(out) as folder:
            written = {
                split: _write_split(folder, split, pictures, seed, num_workers, size, on_picture)
                for split, pictures in source.splits.items()
            }
            skipped = [skip for shards in written.values() for shard in shards for skip in shard.skipped]
            _write_skipped(folder / SKIPPED_NAME, skipped)
            manifest = Manifest(
                classes=source.classes,
                splits={
                    split: _split_record(folder, split, shards, source.classes) for split, shards in written.items()
                },
                recipe=recipe,
                num_skipped=len(skipped),
            )
            (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    except OSError as error:
        raise RunError(f"{out}: the shards could not be written ({error}); nothing was kept") from error
    return WrittenDataset(
        manifest=manifest,
        skipped=skipped,
        num_converted=sum(shard.num_converted for shards in written.values() for shard in shards),
        is_new=True,
    )


def plan_shards(pictures: Sequence[SourcePicture], size: ShardSize) -> list[range]:
    """Cuts the ordered pictures into runs that stay within ``size`` (a picture that is larger has its own shard)."""
    cuts, num_bytes = [0], 0
    for number, picture in enumerate(pictures):
        is_full = num_bytes + picture.num_bytes > size.num_bytes or number - cuts[-1] == size.num_pictures
        if is_full and number > cuts[-1]:
            cuts.append(number)
            num_bytes = 0
        num_bytes += picture.num_bytes
    cuts.append(len(pictures))
    return [range(first, end) for first, end in pairwise(cuts)]


def write_shard(
    folder: Path,
    split: str,
    number: int,
    pictures: Sequence[SourcePicture],
    first_key: int,
    on_picture: Callable[[], None] = lambda: None,
) -> WrittenShard:
    """Writes one tar: for each picture ``<key>.<extension>``, ``<key>.cls`` and ``<key>.json``.

    Args:
        folder: where the shard goes.
        split: the first part of the shard's name.
        number: of the shard in the split.
        pictures: what goes in; those that cannot be decoded are left out.
        first_key: number of the first picture in the split; the key is that number, in nine digits.
        on_picture: called after each picture.
    """
    path = folder / f"{split}-{number:06d}.tar"
    rows, skipped, num_converted = [], [], 0
    with open(path, "wb") as file:
        hashed = _HashedFile(file)
        with tarfile.open(fileobj=hashed, mode="w", format=tarfile.USTAR_FORMAT) as tar:  # type: ignore[call-overload]
            for key, picture in enumerate(pictures, first_key):
                try:
                    checked = check_picture(picture.read())
                except (OSError, ValueError) as error:
                    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
                    skipped.append(Skipped(split=split, label=picture.label, name=picture.name, reason=reason))
                    continue
                finally:
                    on_picture()
                num_converted += checked.converted
                offset = tar.offset + tarfile.BLOCKSIZE
                _add(tar, f"{key:09d}.{checked.extension}", checked.data)
                _add(tar, f"{key:09d}.cls", str(picture.label).encode())
                _add(tar, f"{key:09d}.json", json.dumps({"path": picture.name}).encode())
                size, crc32 = len(checked.data), zlib.crc32(checked.data)
                rows.append((offset, size, number, picture.label, checked.width, checked.height, crc32))
    record = ShardRecord(
        file=path.name, num_pictures=len(rows), num_bytes=hashed.num_bytes, sha256=hashed.sha256.hexdigest()
    )
    return WrittenShard(record=record, rows=np.array(rows, INDEX_DTYPE), skipped=skipped, num_converted=num_converted)


class _HashedFile:
    """A file for writing that hashes what passes through it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.sha256, self.num_bytes = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.num_bytes += len(data)
        return self.file.write(data)

    def tell(self) -> int:
        return self.num_bytes


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # owner 0, mode 0644 and time 0: the same input gives the same bytes
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _write_split(
    folder: Path,
    split: str,
    pictures: list[SourcePicture],
    seed: int,
    num_workers: int,
    size: ShardSize,
    on_picture: Callable[[], None],
) -> list[WrittenShard]:
    # class-mixed order, so that stock readers with a small shuffle buffer see well-mixed batches
    ordered = chosen_order(pictures, seed, purpose=split)
    runs = plan_shards(ordered, size)

    def write(number: int) -> WrittenShard:
        run = runs[number]
        return write_shard(folder, split, number, ordered[run.start : run.stop], run.start, on_picture)

    with ThreadPoolExecutor(num_workers) as pool:
        return list(pool.map(write, range(len(runs))))


def _split_record(folder: Path, split: str, shards: list[WrittenShard], classes: list[str]) -> SplitRecord:
    rows = np.concatenate([shard.rows for shard in shards])
    if not len(rows):
        raise InputError(f"none of the pictures of {split} can be decoded ({shards[0].skipped[0].reason})")
    counts = np.bincount(rows["label"], minlength=len(classes))
    if split == "train" and (lost := [name for name, count in zip(classes, counts, strict=True) if not count]):
        reason = next(skip.reason for shard in shards for skip in shard.skipped if classes[skip.label] in lost)
        raise InputError(
            f"none of the training pictures of {len(lost)} classes can be decoded, such as {lost[0]!r} "
            f"({reason}); mend them or remove the classes"
        )
    index = f"{split}.index.npy"
    return SplitRecord(
        num_pictures=len(rows),
        class_counts=counts.tolist(),
        index=index,
        index_crc32=write_index(folder / index, rows),
        shards=[shard.record for shard in shards],
    )


def _recipe(source: Source, seed: int, size: ShardSize) -> Recipe:
    digest = hashlib.sha256("\0".join(source.classes).encode("utf-8", "surrogateescape"))
    for split, pictures in sorted(source.splits.items()):
        for picture in sorted(pictures, key=lambda picture: picture.name):
            line = f"{split}\0{picture.name}\0{picture.label}\0{picture.num_bytes}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
    options = source.options | {"shard_bytes": size.num_bytes, "shard_pictures": size.num_pictures}
    return Recipe(source=source.kind, options=options, seed=seed, input_sha256=digest.hexdigest())


def _existing(out: Path, recipe: Recipe) -> WrittenDataset | None:
    """The dataset that ``out`` holds if it is the one asked for; None if ``out`` is an empty folder."""
    if not out.is_dir():
        raise InputError(f"{out}: is a file; choose another --out")
    if not any(out.iterdir()):
        return None
    if not (out / MANIFEST_NAME).is_file():
        raise InputError(f"{out}: already holds something else; choose another --out or empty it")
    manifest = read_manifest(out)
    if manifest.recipe != recipe:
        raise InputError(
            f"{out}: already holds other shards ({_difference(manifest.recipe, recipe)}); "
            "choose another --out or remove it"
        )
    return WrittenDataset(manifest=manifest, skipped=_read_skipped(out / SKIPPED_NAME), num_converted=0, is_new=False)


def _difference(old: Recipe, new: Recipe) -> str:
    before, after = old.model_dump(), new.model_dump()
    changed = [key for key in before if before[key] != after[key]]
    return ", ".join(f"{key} {before[key]} there, {after[key]} asked for" for key in changed)


def _write_skipped(path: Path, skipped: list[Skipped]) -> None:
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["split", "label", "name", "reason"])
        writer.writerows([skip.split, skip.label, skip.name, skip.reason] for skip in skipped)


def _read_skipped(path: Path) -> list[Skipped]:
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        return [Skipped(**{**row, "label": int(row["label"])}) for row in csv.DictReader(file)]  # type: ignore[arg-type]
