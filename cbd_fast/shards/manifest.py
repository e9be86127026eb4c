"""dataset.json: what a folder of shards holds and how it was made. It is written last and checked when opened."""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cbd_fast.errors import InputError, first_line

MANIFEST_NAME = "dataset.json"
FORMAT = "cbd_fast shards"
FORMAT_VERSION = 2
IN_PLACE = "webdataset in place"  # source of tars that somebody else wrote and that were indexed where they are


class Record(BaseModel):
    """A part of the manifest; it never changes."""

    model_config = ConfigDict(frozen=True)


class ShardRecord(Record):
    """One tar file."""

    file: str
    num_images: int = Field(ge=0)
    num_bytes: int = Field(ge=0)
    sha256: str


class SplitRecord(Record):
    """One split: its shards, its index and its images per class.

    Where bad images were quarantined later, ``num_quarantined`` entries of the index are marked, and ``made_crc32`` is
    the crc32 of the index as it was made.
    """

    num_images: int = Field(ge=0)
    class_counts: list[int]
    index: str
    index_crc32: int
    made_crc32: int | None = None
    num_quarantined: int = 0
    shards: list[ShardRecord]


class Recipe(Record):
    """How the shards were made: the same recipe gives the same bytes.

    ``input_sha256`` is over the classes and the split, name, label and size of every image of the source.
    """

    source: str
    options: dict[str, Any]
    seed: int
    input_sha256: str


class Manifest(Record):
    """The whole of dataset.json."""

    format: str = FORMAT
    format_version: int = FORMAT_VERSION
    classes: list[str]
    splits: dict[str, SplitRecord]
    recipe: Recipe
    num_skipped: int
    notes: list[str] = []

    @property
    def fingerprint(self) -> str:
        """A name for the images and their order: sets of the same fingerprint train alike, but for bad images."""
        splits = [split for _, split in sorted(self.splits.items())]
        crcs = [split.index_crc32 if split.made_crc32 is None else split.made_crc32 for split in splits]
        return "-".join(f"{crc:08x}" for crc in crcs)

    def to_json(self) -> str:
        """The content of dataset.json."""
        return json.dumps(self.model_dump(), indent=1, ensure_ascii=False) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder of shards.

    Raises:
        InputError: the folder or its manifest is missing, or the manifest is not one, or of another version.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        reason = "is not a folder" if not folder.is_dir() else f"holds no {MANIFEST_NAME}"
        raise InputError(f"{folder}: {reason}; make shards there with cbd-fast shards")
    content = _read_json(path)
    _check_version(path, content)
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(
            f"{path}: not a manifest of shards ({where}: {first['msg']}); make the shards again"
        ) from error


def is_indexed_in_place(folder: Path) -> bool:
    """Whether a folder with a manifest, of any version, holds somebody else's tars, indexed where they are.

    Raises:
        InputError: the manifest is not one.
    """
    return _source_of(_read_json(folder / MANIFEST_NAME)) == IN_PLACE


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path}: not a manifest of shards ({first_line(error)}); make the shards again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a manifest of shards (no JSON object); make the shards again")
    return content


def _check_version(path: Path, content: dict[str, Any]) -> None:
    """Refuses other versions before any of their fields, which may have other names, is looked at."""
    if content.get("format") != FORMAT:
        raise InputError(f"{path}: not a manifest of shards (format {content.get('format')!r}, not {FORMAT!r})")
    version = content.get("format_version")
    if not isinstance(version, int):
        raise InputError(f"{path}: not a manifest of shards (format_version {version!r}); make the shards again")
    if version == FORMAT_VERSION:
        return
    age, remedy = "an older", "make the shards again, in another folder"
    if version > FORMAT_VERSION:
        age, remedy = "a newer", "update cbd_fast"
    elif _source_of(content) == IN_PLACE:
        remedy = "index the shards again with cbd-fast index"
    raise InputError(
        f"{path}: made by {age} version of cbd_fast (format version {version}; this one reads {FORMAT_VERSION}); "
        f"{remedy}"
    )


def _source_of(content: dict[str, Any]) -> str | None:
    recipe = content.get("recipe")
    return recipe.get("source") if isinstance(recipe, dict) else None
