"""dataset.json: what a folder of shards holds and how it was made. It is written last and checked when opened."""

import errno
import json
import os
import re
import reprlib
import stat
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, FailFast, Field, ValidationError, model_validator
from pydantic_core import from_json

from cbd_fast.errors import InputError, first_line, printable

MANIFEST_NAME = "dataset.json"
FORMAT = "cbd_fast shards"
FORMAT_VERSION = 2
IN_PLACE = "webdataset in place"  # source of tars that somebody else wrote and that were indexed where they are
LABEL_KEY = "label_key"  # option of a recipe: where in .json the labels of tars of somebody else are
MAX_MANIFEST_BYTES = 32 << 20  # 140,000 shards; what a forged one can make of it in memory is twenty times as much
MAX_SPLITS = 100
MAX_SHOWN = 100  # characters of what somebody else wrote, in a message
SPLIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def _check_inside(name: str) -> str:
    """A path that stays in the folder it is joined to; what its links lead to is read, and never written."""
    parts = name.split("/")
    is_inside = all(part not in ("", ".", "..") and len(os.fsencode(part)) <= 255 for part in parts)
    if not is_inside or not name.isprintable() or len(name) > 2000:
        raise ValueError(f"{shown(name)} is no plain path of a file below the folder")
    return name


Count = Annotated[int, Field(ge=0, lt=1 << 62)]
Crc32 = Annotated[int, Field(ge=0, lt=1 << 32)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
PathInside = Annotated[str, AfterValidator(_check_inside)]


class Record(BaseModel):
    """A part of the manifest; it never changes."""

    model_config = ConfigDict(frozen=True)


class ShardRecord(Record):
    """One tar file."""

    file: PathInside
    num_images: Count
    num_bytes: Count
    sha256: Sha256

    def path(self, folder: Path) -> Path:
        """The file, in a folder of shards."""
        return folder / _check_inside(self.file)


class SplitRecord(Record):
    """One split: its shards, its index and its images per class.

    Where bad images were quarantined later, ``num_quarantined`` entries of the index are marked, and ``made_crc32`` is
    the crc32 of the index as it was made.
    """

    num_images: Count
    class_counts: Annotated[list[Count], FailFast()]
    index: PathInside
    index_crc32: Crc32
    made_crc32: Crc32 | None = None
    num_quarantined: Count = 0
    shards: Annotated[list[ShardRecord], FailFast()]

    def index_path(self, folder: Path) -> Path:
        """The file of the index, in a folder of shards."""
        return folder / _check_inside(self.index)


class Recipe(Record):
    """How the shards were made: the same recipe gives the same bytes.

    ``input_sha256`` is over the classes and the split, name, label and size of every image of the source.
    """

    source: str
    options: dict[str, Any]
    seed: int
    input_sha256: str


class Manifest(Record):
    """The whole of dataset.json.

    ``sixteen_bit`` is ``LO,HI``, the values of images of more than 8 bits that became 0 and 255; None without such.
    """

    format: str = FORMAT
    format_version: int = FORMAT_VERSION
    classes: Annotated[list[str], FailFast()]
    splits: dict[str, SplitRecord]
    recipe: Recipe
    num_skipped: Count
    sixteen_bit: Annotated[str, Field(max_length=100)] | None = None
    notes: Annotated[list[str], FailFast()] = []

    @model_validator(mode="after")
    def _check(self) -> "Manifest":
        """What is written and removed later has these names, and readers count on these numbers."""
        for split, record in self.splits.items():
            if not SPLIT_NAME.fullmatch(split):
                raise ValueError(f"the split {shown(split)} has no plain name of letters, digits, '.', '_' and '-'")
            if not is_index_name(record.index, split):
                raise ValueError(f"{shown(record.index)} is no name of an index of {split}")
            if len(record.class_counts) != len(self.classes):
                counts = f"{len(record.class_counts):,} counts for {len(self.classes):,} classes"
                raise ValueError(f"the class_counts of {split}: {counts}")
        files = Counter(shard.file for record in self.splits.values() for shard in record.shards)
        if twice := [file for file, number in files.items() if number > 1]:
            raise ValueError(f"{shown(twice[0])} is listed twice")
        if "train" not in self.splits:
            raise ValueError("there is no split 'train'")
        return self

    @property
    def orient(self) -> bool:
        """Whether images were turned as their orientation tags say."""
        return self.recipe.options.get("orient") is True

    @property
    def fingerprint(self) -> str:
        """A name for the images and their order: sets of the same fingerprint train alike, but for bad images."""
        splits = [split for _, split in sorted(self.splits.items())]
        crcs = [split.index_crc32 if split.made_crc32 is None else split.made_crc32 for split in splits]
        return "-".join(f"{crc:08x}" for crc in crcs)

    def to_json(self) -> str:
        """The content of dataset.json."""
        return json.dumps(self.model_dump(), indent=1, ensure_ascii=False) + "\n"


def is_index_name(name: str, split: str) -> bool:
    """Whether an index of a split may have this name: ``train.index.npy``, or ``train.index.3.npy`` of a quarantine."""
    return re.fullmatch(rf"{re.escape(split)}\.index(\.[0-9]{{1,9}})?\.npy", name) is not None


def shown(name: str) -> str:
    """What somebody else wrote, in quotes, as it may be shown: cut off where it is long."""
    return repr(printable(name if len(name) <= MAX_SHOWN else name[:MAX_SHOWN] + "..."))


def file_size(path: Path) -> int:
    """Bytes of a regular file, or of that which a link leads to.

    Raises:
        OSError: there is none, but perhaps a pipe or a device, which could be read for ever.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "no regular file", str(path))
    return status.st_size


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
    splits = content.get("splits")
    if isinstance(splits, dict) and len(splits) > MAX_SPLITS:
        raise InputError(f"{path}: not a manifest of shards ({len(splits):,} splits); make the shards again")
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = printable(".".join(str(part)[:MAX_SHOWN] for part in first["loc"])) or "contents"
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
        if (num_bytes := file_size(path)) > MAX_MANIFEST_BYTES:
            limit = f"not a manifest of shards ({num_bytes:,} bytes, and at most {MAX_MANIFEST_BYTES:,} are read)"
            raise InputError(f"{path}: {limit}; make fewer, larger shards")
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); make it readable") from error
    try:
        if data.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
            raise ValueError("it begins with a byte order mark, and was saved as something else than plain UTF-8")
        content = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise InputError(f"{path}: not a manifest of shards ({first_line(error)}); make the shards again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a manifest of shards (no JSON object); make the shards again")
    return content


def _check_version(path: Path, content: dict[str, Any]) -> None:
    """Refuses other versions before any of their fields, which may have other names, is looked at."""
    if (found := content.get("format")) != FORMAT:
        raise InputError(f"{path}: not a manifest of shards (format {reprlib.repr(found)}, not {FORMAT!r})")
    version = content.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool):
        what = f"format_version {reprlib.repr(version)}"
        raise InputError(f"{path}: not a manifest of shards ({what}); make the shards again")
    if version == FORMAT_VERSION:
        return
    age, remedy = "an older", "make the shards again, in another folder"
    if version > FORMAT_VERSION:
        age, remedy = "a newer", "update cbd_fast"
    elif _source_of(content) == IN_PLACE:
        remedy = "index the shards again with cbd-fast index"
    versions = f"format version {reprlib.repr(version)}; this one reads {FORMAT_VERSION}"
    raise InputError(f"{path}: made by {age} version of cbd_fast ({versions}); {remedy}")


def _source_of(content: dict[str, Any]) -> str | None:
    recipe = content.get("recipe")
    return recipe.get("source") if isinstance(recipe, dict) else None
