"""Checks shards against their manifest and index, and marks bad images so that the loader passes over them."""

import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cbd_fast.errors import InputError, first_line
from cbd_fast.files import file_sha256, fsync_path, write_atomically
from cbd_fast.shards.index import ClassIndex, file_crc32
from cbd_fast.shards.manifest import MANIFEST_NAME, Manifest, ShardRecord, SplitRecord, read_manifest
from cbd_fast.shards.writing.index_in_place import IN_PLACE

LABEL_SUFFIX = ".cls"


@dataclass(frozen=True, kw_only=True)
class BadImage:
    """An image that training cannot use; ``row`` of the split's index."""

    row: int
    name: str
    reason: str


@dataclass(kw_only=True)
class SplitFindings:
    """What was found in a split.

    Attributes:
        record: the split's part of the manifest.
        index: its images.
        problems: what is wrong with shards, beside their images.
        lasting_problems: what no quarantine repairs.
        bad: images that cannot be used; those that are quarantined already are not among them.
        good: quarantined rows that can be used again, with width and height in pixels.
        shards: the shards as they are, where they differ from the manifest, by number.
    """

    record: SplitRecord
    index: ClassIndex
    problems: list[str] = field(default_factory=list)
    lasting_problems: list[str] = field(default_factory=list)
    bad: list[BadImage] = field(default_factory=list)
    good: dict[int, tuple[int, int]] = field(default_factory=dict)
    shards: dict[int, ShardRecord] = field(default_factory=dict)


def verify_split(
    folder: Path,
    manifest: Manifest,
    split: str,
    *,
    is_full: bool,
    num_workers: int,
    on_images: Callable[[int], None] = lambda number: None,
) -> SplitFindings:
    """Checks one split.

    Args:
        folder: of the shards.
        manifest: its manifest.
        split: name of the split.
        is_full: whether to hash the shards, and read and decode every image; otherwise only sizes, counts and the
            places and labels in the tars are compared.
        num_workers: threads.
        on_images: called from any thread with the number of images that were just checked.

    Raises:
        InputError: the index cannot be opened, or is not the one of the manifest.
    """
    record = manifest.splits[split]
    index = ClassIndex.open(folder / record.index, len(manifest.classes))
    if file_crc32(folder / record.index) != record.index_crc32 or index.counts.tolist() != record.class_counts:
        raise InputError(
            f"{folder / record.index}: not the index that dataset.json was written with; make the shards again"
        )
    findings = SplitFindings(record=record, index=index)
    # in the order of the tars: reading runs forward through each
    by_place = np.lexsort((index.rows["offset"], index.rows["shard"]))
    limits = np.searchsorted(index.rows["shard"][by_place], np.arange(len(record.shards) + 1))

    def check(number: int) -> None:
        rows = by_place[limits[number] : limits[number + 1]]
        is_foreign = manifest.recipe.source == IN_PLACE
        _check_shard(folder, number, rows, findings, is_full=is_full, is_foreign=is_foreign)
        on_images(len(rows))

    with ThreadPoolExecutor(num_workers) as pool:
        list(pool.map(check, range(len(record.shards))))
    findings.problems.sort()
    findings.lasting_problems.sort()
    findings.bad.sort(key=lambda bad: bad.row)
    return findings


def quarantine(folder: Path, findings: dict[str, SplitFindings]) -> Manifest:
    """Marks bad images in the index, and unmarks those that are good again.

    The new index gets another name before the manifest names it, so that whatever happens one of the two is whole.

    Args:
        folder: of the shards.
        findings: of a full verification of each split.

    Returns:
        The new manifest.
    """
    manifest = read_manifest(folder)
    splits = dict(manifest.splits)
    old = []
    for split, found in findings.items():
        if not (found.bad or found.good or found.shards):
            continue
        rows = np.array(found.index.rows)
        for bad in found.bad:
            rows["width"][bad.row] = rows["height"][bad.row] = 0
        for row, (width, height) in found.good.items():
            rows["width"][row], rows["height"][row] = width, height
        record = found.record
        path = folder / _next_name(split, record.index)
        np.save(path, rows, allow_pickle=False)
        fsync_path(path)
        old.append(folder / record.index)
        splits[split] = record.model_copy(
            update={
                "index": path.name,
                "index_crc32": file_crc32(path),
                "made_crc32": record.index_crc32 if record.made_crc32 is None else record.made_crc32,
                "num_quarantined": int((rows["width"] == 0).sum()),
                "shards": [found.shards.get(number, shard) for number, shard in enumerate(record.shards)],
            }
        )
    manifest = manifest.model_copy(update={"splits": splits})
    write_atomically(folder / MANIFEST_NAME, manifest.to_json())
    for path in old:
        path.unlink()
    return manifest


def _next_name(split: str, name: str) -> str:
    """``train.index.npy``, ``train.index.1.npy``, ``train.index.2.npy``, ..."""
    number = name.removeprefix(f"{split}.index.").removesuffix("npy").rstrip(".")
    return f"{split}.index.{int(number or 0) + 1}.npy"


def _check_shard(
    folder: Path, number: int, rows: np.ndarray, findings: SplitFindings, *, is_full: bool, is_foreign: bool
) -> None:
    record = findings.record.shards[number]
    path = folder / record.file
    try:
        size = path.stat().st_size
        sha256 = file_sha256(path) if is_full else record.sha256
    except OSError as error:
        findings.lasting_problems.append(f"{path}: {error.strerror}; bring it back or make the shards again")
        return
    if record.num_images != len(rows):
        findings.lasting_problems.append(
            f"{path}: {record.num_images} images in dataset.json, but {len(rows)} in the index"
        )
    is_bad = findings.index.rows["width"][rows] == 0  # quarantined before
    if is_full:
        is_bad[:] = [not _check_image(path, int(row), findings) for row in rows]
    problems = list(_compare_places(path, findings.index.rows[rows[~is_bad]], is_foreign=is_foreign))
    findings.lasting_problems += problems
    if (size, sha256) == (record.num_bytes, record.sha256):
        return
    found, there = (f"{size:,} bytes", f"{record.num_bytes:,}")
    if size == record.num_bytes:
        found, there = f"sha256 {sha256}", record.sha256
    findings.problems.append(f"{path}: {found}, but dataset.json has {there}")
    has_changed = is_bad.any() or not findings.good.keys().isdisjoint(rows.tolist())
    if has_changed and not problems:  # bad images, or those that were repaired, are all that differs
        findings.shards[number] = record.model_copy(update={"num_bytes": size, "sha256": sha256})


def _check_image(path: Path, row: int, findings: SplitFindings) -> bool:
    """Whether an image can be used."""
    place = findings.index.rows[row]
    was_quarantined = int(place["width"]) == 0
    try:
        width, height = _decoded_size(path, int(place["offset"]), int(place["size"]), int(place["crc32"]))
        if not was_quarantined and (width, height) != (int(place["width"]), int(place["height"])):
            raise ValueError(f"{width} x {height} pixels, but the index has {place['width']} x {place['height']}")
    except (OSError, ValueError, RuntimeError) as error:
        if not was_quarantined:
            name = f"{path.name}: byte {int(place['offset']):,}"
            findings.bad.append(BadImage(row=row, name=name, reason=first_line(error)))
        return False
    if was_quarantined:
        findings.good[row] = (width, height)
    return True


def _decoded_size(path: Path, offset: int, size: int, crc32: int) -> tuple[int, int]:
    from cbd_fast.shards.reference_decoder import (
        decode_rgb,  # takes seconds to import, and only a full verification needs it
    )

    with open(path, "rb", buffering=0) as file:
        data = bytearray(os.pread(file.fileno(), size, offset))
    if len(data) < size:
        raise OSError("the tar ends before it")
    if zlib.crc32(data) != crc32:
        raise OSError("the bytes are not those that were indexed (crc32)")
    height, width = decode_rgb(np.frombuffer(data, np.uint8)).shape[1:]
    return width, height


def _compare_places(path: Path, rows: np.ndarray, *, is_foreign: bool) -> Iterator[str]:
    """Problems of a tar whose members are not where the index has them, or, if it is ours, have another label."""
    members: dict[int, tarfile.TarInfo] = {}
    labels: dict[str, int] = {}
    # a cut off tar has its members up to there
    with suppress(OSError, tarfile.TarError, ValueError), tarfile.open(path, "r:") as tar:
        for member in tar:
            members[member.offset_data] = member
            if not is_foreign and member.name.endswith(LABEL_SUFFIX):
                content = tar.extractfile(member)
                assert content is not None  # regular files have content
                labels[_key(member.name)] = int(content.read())
    for place in rows:
        offset, size, label = (int(place[column]) for column in ("offset", "size", "label"))
        member_there = members.get(offset)
        if member_there is None or member_there.size != size:
            yield f"{path}: no image of {size:,} bytes at byte {offset:,}, where the index has one"
        elif not is_foreign and labels.get(_key(member_there.name)) != label:
            found = labels.get(_key(member_there.name))
            yield f"{path}: {member_there.name} has label {found}, but {label} in the index"


def _key(name: str) -> str:
    return name.partition(".")[0]
