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
from cbd_fast.files import file_sha256, write_atomically
from cbd_fast.shards.index import ClassIndex, file_crc32, write_entries
from cbd_fast.shards.manifest import IN_PLACE, MANIFEST_NAME, Manifest, ShardRecord, SplitRecord, read_manifest

LABEL_SUFFIX = ".cls"


@dataclass(frozen=True, kw_only=True)
class BadImage:
    """An image that training cannot use.

    Attributes:
        index: position of the image in the split's index.
        name: where the image is, for messages.
        reason: why it cannot be used.
    """

    index: int
    name: str
    reason: str


@dataclass(kw_only=True)
class SplitFindings:
    """What a verification of a split says.

    Attributes:
        record: the split's part of the manifest.
        index: the split's images.
        problems: what is wrong with shards, beside their images.
        lasting_problems: what no quarantine repairs.
        bad: images that cannot be used; those that are quarantined already are not among them.
        good: width and height in pixels of quarantined images that can be used again, by index.
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
    index = ClassIndex.open(folder / record.index, len(manifest.classes))
    if file_crc32(folder / record.index) != record.index_crc32 or index.counts.tolist() != record.class_counts:
        raise InputError(
            f"{folder / record.index}: not the index that dataset.json was written with; make the shards again"
        )
    findings = SplitFindings(record=record, index=index)
    # in the order of the tars: reading runs forward through each
    in_tar_order = np.lexsort((index.entries["offset"], index.entries["shard"]))
    limits = np.searchsorted(index.entries["shard"][in_tar_order], np.arange(len(record.shards) + 1))

    def check(number: int) -> None:
        indices = in_tar_order[limits[number] : limits[number + 1]]
        is_foreign = manifest.recipe.source == IN_PLACE
        _check_shard(folder, number, indices, findings, is_full=is_full, is_foreign=is_foreign)
        on_images(len(indices))

    with ThreadPoolExecutor(num_workers) as pool:
        list(pool.map(check, range(len(record.shards))))
    findings.problems.sort()
    findings.lasting_problems.sort()
    findings.bad.sort(key=lambda bad: bad.index)
    return findings


def quarantine(folder: Path, findings: dict[str, SplitFindings]) -> Manifest:
    """Marks bad images in the index, and unmarks those that are good again.

    The new index gets another name before the manifest names it, so that whatever happens one of the two is whole.

    Args:
        folder: the folder of the shards.
        findings: what a full verification says of each split.

    Returns:
        The new manifest.
    """
    manifest = read_manifest(folder)
    splits = dict(manifest.splits)
    old = []
    for split, split_findings in findings.items():
        if not (split_findings.bad or split_findings.good or split_findings.shards):
            continue
        entries = np.array(split_findings.index.entries)
        for bad in split_findings.bad:
            entries["width"][bad.index] = entries["height"][bad.index] = 0
        for index, (width, height) in split_findings.good.items():
            entries["width"][index], entries["height"][index] = width, height
        record = split_findings.record
        path = folder / _next_name(split, record.index)
        write_entries(path, entries)
        old.append(folder / record.index)
        splits[split] = record.model_copy(
            update={
                "index": path.name,
                "index_crc32": file_crc32(path),
                "made_crc32": record.index_crc32 if record.made_crc32 is None else record.made_crc32,
                "num_quarantined": int((entries["width"] == 0).sum()),
                "shards": [split_findings.shards.get(number, shard) for number, shard in enumerate(record.shards)],
            }
        )
    manifest = manifest.model_copy(update={"splits": splits})
    write_atomically(folder / MANIFEST_NAME, manifest.to_json())
    for path in old:
        path.unlink()
    return manifest


def _next_name(split: str, name: str) -> str:
    """The name after ``name`` of ``train.index.npy``, ``train.index.1.npy``, ``train.index.2.npy``, ..."""
    number = name.removeprefix(f"{split}.index.").removesuffix("npy").rstrip(".")
    return f"{split}.index.{int(number or 0) + 1}.npy"


def _check_shard(
    folder: Path, number: int, indices: np.ndarray, findings: SplitFindings, *, is_full: bool, is_foreign: bool
) -> None:
    record = findings.record.shards[number]
    path = folder / record.file
    try:
        size = path.stat().st_size
        sha256 = file_sha256(path) if is_full else record.sha256
    except OSError as error:
        findings.lasting_problems.append(f"{path}: {error.strerror}; bring it back or make the shards again")
        return
    if record.num_images != len(indices):
        findings.lasting_problems.append(
            f"{path}: {record.num_images} images in dataset.json, but {len(indices)} in the index"
        )
    is_bad = findings.index.entries["width"][indices] == 0  # quarantined before
    if is_full:
        is_bad[:] = [not _check_image(path, int(index), findings) for index in indices]
    problems = list(_compare_members(path, findings.index.entries[indices[~is_bad]], is_foreign=is_foreign))
    findings.lasting_problems += problems
    if (size, sha256) == (record.num_bytes, record.sha256):
        return
    is_now, was = f"{size:,} bytes", f"{record.num_bytes:,}"
    if size == record.num_bytes:
        is_now, was = f"sha256 {sha256}", record.sha256
    findings.problems.append(f"{path}: {is_now}, but dataset.json has {was}")
    has_changed = is_bad.any() or not findings.good.keys().isdisjoint(indices.tolist())
    if has_changed and not problems:  # bad images, or those that were repaired, are all that differs
        findings.shards[number] = record.model_copy(update={"num_bytes": size, "sha256": sha256})


def _check_image(path: Path, index: int, findings: SplitFindings) -> bool:
    """Whether an image can be used."""
    entry = findings.index.entries[index]
    was_quarantined = int(entry["width"]) == 0
    try:
        width, height = _decoded_size(path, int(entry["offset"]), int(entry["size"]), int(entry["crc32"]))
        if not was_quarantined and (width, height) != (int(entry["width"]), int(entry["height"])):
            raise ValueError(f"{width} x {height} pixels, but the index has {entry['width']} x {entry['height']}")
    except (OSError, ValueError, RuntimeError) as error:
        if not was_quarantined:
            name = f"{path.name}: byte {int(entry['offset']):,}"
            findings.bad.append(BadImage(index=index, name=name, reason=first_line(error)))
        return False
    if was_quarantined:
        findings.good[index] = (width, height)
    return True


def _decoded_size(path: Path, offset: int, size: int, crc32: int) -> tuple[int, int]:
    # takes seconds to import, and only a full verification needs it
    from cbd_fast.shards.reference_decoder import decode_rgb

    with open(path, "rb", buffering=0) as file:
        data = bytearray(os.pread(file.fileno(), size, offset))
    if len(data) < size:
        raise OSError("the tar ends before it")
    if zlib.crc32(data) != crc32:
        raise OSError("the bytes are not those that were indexed (crc32)")
    height, width = decode_rgb(np.frombuffer(data, np.uint8)).shape[1:]
    return width, height


def _compare_members(path: Path, entries: np.ndarray, *, is_foreign: bool) -> Iterator[str]:
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
    for entry in entries:
        offset, size, label = (int(entry[column]) for column in ("offset", "size", "label"))
        image = members.get(offset)
        if image is None or image.size != size:
            yield f"{path}: no image of {size:,} bytes at byte {offset:,}, where the index has one"
        elif not is_foreign and (label_there := labels.get(_key(image.name))) != label:
            yield f"{path}: {image.name} has label {label_there}, but {label} in the index"


def _key(name: str) -> str:
    return name.partition(".")[0]
