"""Folders of shards with any number of images in next to no space: their index points to a few real JPEGs."""

import io
import tarfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from cbd_fast.files import file_sha256
from cbd_fast.shards.index import INDEX_DTYPE, file_crc32, write_index
from cbd_fast.shards.manifest import MANIFEST_NAME, Manifest, Recipe, ShardRecord, SplitRecord

NUM_FILES, SIDE = 64, 64  # images that really are there, and their height and width
IMBALANCE = 20_000  # of the exponential tail, Cui et al., CVPR 2019; the smallest class has one image
PART_ROWS = 1 << 20  # of the index that are made at a time


def make_synthetic_shards(folder: Path, num_images: int, num_classes: int) -> Path:
    """Makes a long-tailed split ``train`` that the loader opens and reads like any other.

    Args:
        folder: is made.
        num_images: rows of the index, at least one per class.
        num_classes: of a long tail, the largest first.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True)
    files = write_tar(folder / "train-000000.tar")
    counts = long_tailed_counts(num_images, num_classes)
    ends, parts = np.cumsum(counts), []
    for first in range(0, num_images, PART_ROWS):
        numbers = np.arange(first, min(first + PART_ROWS, num_images))
        rows = files[numbers % NUM_FILES]
        rows["label"] = np.searchsorted(ends, numbers, side="right")
        parts.append(folder / f"part-{first}.npy")
        np.save(parts[-1], rows)
    write_index(folder / "train.index.npy", parts, num_classes)
    for part in parts:
        part.unlink()
    write_manifest(folder, counts)
    return folder


def long_tailed_counts(num_images: int, num_classes: int) -> np.ndarray:
    """``(num_classes,)`` int64 images per class, from many to one."""
    weights = IMBALANCE ** -(np.arange(num_classes) / max(num_classes - 1, 1))
    ends = np.rint((num_images - num_classes) * np.cumsum(weights) / weights.sum()).astype(np.int64)
    return 1 + np.diff(ends, prepend=0)


def write_tar(path: Path) -> np.ndarray:
    """Writes the JPEGs; ``(NUM_FILES,)`` of ``INDEX_DTYPE``."""
    rng, rows = np.random.default_rng(0), np.zeros(NUM_FILES, INDEX_DTYPE)
    with tarfile.open(path, "w") as tar:
        for number in range(NUM_FILES):
            coarse = rng.integers(0, 256, (8, 8, 3), np.uint8)  # enlarged, it compresses like a photograph
            buffer = io.BytesIO()
            Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(buffer, "JPEG")
            entry = tarfile.TarInfo(f"{number:09d}.jpg")
            entry.size = len(buffer.getvalue())
            offset = tar.offset + tarfile.BLOCKSIZE
            tar.addfile(entry, io.BytesIO(buffer.getvalue()))
            rows[number] = (offset, entry.size, 0, 0, SIDE, SIDE, zlib.crc32(buffer.getvalue()))
    return rows


def write_manifest(folder: Path, counts: np.ndarray) -> None:
    """Writes dataset.json for the tar and the index that are there."""
    tar, index = folder / "train-000000.tar", folder / "train.index.npy"
    num_images = int(counts.sum())
    shard = ShardRecord(file=tar.name, num_images=num_images, num_bytes=tar.stat().st_size, sha256=file_sha256(tar))
    split = SplitRecord(
        num_images=num_images,
        class_counts=counts.tolist(),
        index=index.name,
        index_crc32=file_crc32(index),
        shards=[shard],
    )
    manifest = Manifest(
        classes=[f"class {label}" for label in range(len(counts))],
        splits={"train": split},
        recipe=Recipe(source="synthetic", options={}, seed=0, input_sha256=""),
        num_skipped=0,
    )
    (folder / MANIFEST_NAME).write_text(manifest.to_json())
