"""dataset.json: what a folder of shards holds and how it was made. It is written last and checked when opened."""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cbd_fast.errors import InputError

MANIFEST_NAME = "dataset.json"
FORMAT = "cbd_fast shards"
FORMAT_VERSION = 1


class ShardRecord(BaseModel):
    """One tar file."""

    model_config = ConfigDict(frozen=True)
    file: str
    num_images: int = Field(ge=0)
    num_bytes: int = Field(ge=0)
    sha256: str


class SplitRecord(BaseModel):
    """One split: its shards, its index and its images per class.

    Where bad images were quarantined later, ``num_quarantined`` rows of the index are marked, and ``made_crc32`` is
    the crc32 of the index as it was made.
    """

    model_config = ConfigDict(frozen=True)
    num_images: int = Field(ge=0)
    class_counts: list[int]
    index: str
    index_crc32: int
    made_crc32: int | None = None
    num_quarantined: int = 0
    shards: list[ShardRecord]


class Recipe(BaseModel):
    """How the shards were made: the same recipe gives the same bytes.

    ``input_sha256`` is over the classes and the split, name, label and size of every image that was offered.
    """

    model_config = ConfigDict(frozen=True)
    source: str
    options: dict[str, Any]
    seed: int
    input_sha256: str


class Manifest(BaseModel):
    """The whole of dataset.json."""

    model_config = ConfigDict(frozen=True)
    format: str = FORMAT
    format_version: int = FORMAT_VERSION
    classes: list[str]
    splits: dict[str, SplitRecord]
    recipe: Recipe
    num_skipped: int
    notes: list[str] = []

    @property
    def fingerprint(self) -> str:
        """Names the images and their order: two sets of the same fingerprint train alike, but for bad images."""
        splits = [split for _, split in sorted(self.splits.items())]
        crcs = [split.index_crc32 if split.made_crc32 is None else split.made_crc32 for split in splits]
        return "-".join(f"{crc:08x}" for crc in crcs)

    def to_json(self) -> str:
        return json.dumps(self.model_dump(), indent=1, ensure_ascii=False) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """Reads the manifest of a folder of shards.

    Raises:
        InputError: the folder or its manifest is missing, or the manifest is not one.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        reason = "is not a folder" if not folder.is_dir() else f"holds no {MANIFEST_NAME}"
        raise InputError(f"{folder}: {reason}; make shards there with tools/make_shards.py")
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path}: not a manifest of shards ({where}: {first['msg']})") from error
    if (manifest.format, manifest.format_version) != (FORMAT, FORMAT_VERSION):
        raise InputError(
            f"{path}: format {manifest.format!r} version {manifest.format_version}; this version reads "
            f"{FORMAT!r} version {FORMAT_VERSION}"
        )
    return manifest
