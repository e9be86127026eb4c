"""Checks shards against their manifest and index, and marks bad images so that the loader passes over them."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from pathlib import Path

import numpy as np

from cbd_fast.errors import InputError
from cbd_fast.files import PARTIAL_SUFFIX, write_atomically
from cbd_fast.shards.check_shard import BadImage, LabelCheck, SplitFindings, check_shard
from cbd_fast.shards.index import REMEDY, ClassIndex, file_crc32, is_index, write_entries
from cbd_fast.shards.manifest import MANIFEST_NAME, Manifest, is_index_name, read_manifest

__all__ = ["BadImage", "SplitFindings", "quarantine", "verify_split"]


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
        folder: the folder of the shards.
        manifest: manifest of the folder.
        split: name of the split.
        is_full: whether to hash the shards, and read and decode every image; otherwise only sizes, counts,
            and offsets and labels in the tars are compared.
        num_workers: threads.
        on_images: called from any thread with the number of images that were just checked.

    Raises:
        InputError: the index cannot be opened, or is not the one of the manifest.
    """
    record = manifest.splits[split]
    path = record.index_path(folder)
    index = ClassIndex.open(
        path, len(manifest.classes), np.array([shard.num_bytes for shard in record.shards], np.uint64)
    )
    if file_crc32(path) != record.index_crc32 or index.counts.tolist() != record.class_counts:
        raise InputError(f"{path}: not the index that dataset.json was written with; {REMEDY}")
    findings, labels = SplitFindings(record=record, index=index), LabelCheck(manifest)
    if (num_marked := len(index.quarantined)) != record.num_quarantined:
        findings.problems.append(
            f"{path}: {num_marked:,} images are marked as bad, but dataset.json has {record.num_quarantined:,}"
        )
    # in the order of the tars: reading runs forward through each
    in_tar_order = np.lexsort((index.entries["offset"], index.entries["shard"]))
    limits = np.searchsorted(index.entries["shard"][in_tar_order], np.arange(len(record.shards) + 1))

    def check(number: int) -> None:
        if not findings.is_stopped.is_set():
            indices = in_tar_order[limits[number] : limits[number + 1]]
            check_shard(folder, number, indices, findings, is_full=is_full, labels=labels)
            on_images(len(indices))

    with ThreadPoolExecutor(num_workers) as pool:
        try:
            list(pool.map(check, range(len(record.shards))))
        except BaseException:
            findings.is_stopped.set()  # else the threads would finish what they are at
            raise
    findings.problems.sort()
    findings.lasting_problems.sort()
    findings.bad.sort(key=lambda bad: bad.index)
    return findings


def quarantine(folder: Path, findings: dict[str, SplitFindings]) -> Manifest:
    """Marks bad images in the index, and unmarks those that are good again.

    The new index gets another name before the manifest names it, so that whatever happens one of the two is whole.
    The folder must be this command's alone (``locked_folder``) since it was verified.

    Args:
        folder: the folder of the shards.
        findings: what a full verification says of each split.

    Returns:
        The new manifest.

    Raises:
        InputError: the shards have changed since they were verified.
    """
    manifest = read_manifest(folder)
    splits = dict(manifest.splits)
    for split, found in findings.items():
        record = found.record
        if splits.get(split) != record:
            raise InputError(f"{folder}: the split {split} was changed by another command meanwhile; verify it again")
        is_miscounted = len(found.index.quarantined) != record.num_quarantined
        if not (found.bad or found.good or found.shards or is_miscounted):
            continue
        entries = np.array(found.index.entries)
        for bad in found.bad:
            entries["width"][bad.index] = entries["height"][bad.index] = 0
        for index, (width, height) in found.good.items():
            entries["width"][index], entries["height"][index] = width, height
        path = _next_path(folder, split, record.index)
        write_entries(path, entries)
        splits[split] = record.model_copy(
            update={
                "index": path.name,
                "index_crc32": file_crc32(path),
                "made_crc32": record.index_crc32 if record.made_crc32 is None else record.made_crc32,
                "num_quarantined": int((entries["width"] == 0).sum()),
                "shards": [found.shards.get(number, shard) for number, shard in enumerate(record.shards)],
            }
        )
    manifest = manifest.model_copy(update={"splits": splits})
    write_atomically(folder / MANIFEST_NAME, manifest.to_json())
    _remove_old(folder, manifest)
    return manifest


def _next_path(folder: Path, split: str, name: str) -> Path:
    """The first of ``train.index.1.npy``, ``train.index.2.npy``, ... that is free, or left by a killed command."""
    paths = (folder / f"{split}.index.{number}.npy" for number in count(1))
    return next(path for path in paths if path.name != name and (is_index(path) or not os.path.lexists(path)))


def _remove_old(folder: Path, manifest: Manifest) -> None:
    """Removes the indexes that the manifest names no more, and what killed commands have left of others."""
    for path in folder.iterdir():
        name = path.name.removesuffix(PARTIAL_SUFFIX)
        is_partial = name != path.name
        split = next((split for split in manifest.splits if is_index_name(name, split)), None)
        if split is None or path.name == manifest.splits[split].index:
            continue
        if is_partial or is_index(path):
            with suppress(OSError):
                path.unlink()
