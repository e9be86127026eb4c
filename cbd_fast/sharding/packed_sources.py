"""Layouts of many pictures in one file: handwritten digits, CIFAR, and WebDataset shards that somebody else wrote."""

import fnmatch
import json
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cbd_fast.errors import InputError
from cbd_fast.sharding.listing import SourcePicture
from cbd_fast.sharding.long_tail import choice_key, exponential_counts
from cbd_fast.sharding.pictures import encode_png
from cbd_fast.sharding.sources import Source, read_classes

DIGITS_NUM_LARGEST = 124  # the rarest digit has 174 pictures, of which 50 are for testing
DIGITS_NUM_TEST_PER_CLASS = 50
DIGITS_IMBALANCE = 100.0
DIGITS_SIZE = 32

PICTURE_EXTENSIONS = (
    "jpg",
    "jpeg",
    "jpe",
    "jfif",
    "png",
    "webp",
    "bmp",
    "gif",
    "ppm",
    "pgm",
    "pbm",
    "pnm",
    "tif",
    "tiff",
)
LABEL_EXTENSIONS = ("cls", "txt")
COMPRESSED_EXTENSIONS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
SPLIT_WORDS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


def digits_source(seed: int) -> Source:
    """The 1797 handwritten digits of scikit-learn, 8 x 8 upscaled to 32 x 32, as a long-tailed set of imbalance 100.

    50 pictures of each class are for testing; of the others the classes 0 to 9 keep 124 down to 1.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError(
            "the source 'digits' needs scikit-learn, which ships the pictures: pip install 'cbd-fast[digits]'"
        ) from error
    digits = load_digits()

    def pictures() -> Iterator[SourcePicture]:
        for label, count in enumerate(exponential_counts(DIGITS_NUM_LARGEST, 10, DIGITS_IMBALANCE)):
            names = {f"{label}/{number:04d}.png": number for number in np.flatnonzero(digits.target == label)}
            chosen = sorted(names, key=lambda name: choice_key(seed, name))
            for place, name in enumerate(chosen[: DIGITS_NUM_TEST_PER_CLASS + count]):
                split = "test" if place < DIGITS_NUM_TEST_PER_CLASS else "train"
                yield _made_picture(split, name, label, _digit(digits.images[names[name]]))

    return Source(
        kind="digits",
        classes=[str(label) for label in range(10)],
        pictures=pictures,
        options={"imbalance": DIGITS_IMBALANCE},
    )


def cifar_source(kind: str, root: Path) -> Source:
    """CIFAR-10 or CIFAR-100 from the official python archives, downloaded to ``root`` where they are not there.

    Args:
        kind: ``cifar10`` or ``cifar100``.
        root: the folder of ``cifar-10-batches-py`` or ``cifar-100-python``, or of the archive.

    Raises:
        InputError: the archives are not there and cannot be downloaded, or are damaged.
    """
    from torchvision import datasets  # takes seconds to import

    dataset = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[kind]
    try:
        # torchvision compares the archives' published checksums before it opens them
        splits = {split: dataset(root, train=split == "train", download=True) for split in ("train", "test")}
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"{root}: holds no whole {dataset.base_folder}, and {dataset.url} cannot be downloaded ({error}); put "
            f"{dataset.filename} there"
        ) from error
    classes = splits["train"].classes

    def pictures() -> Iterator[SourcePicture]:
        for split, data in splits.items():
            for number, (pixels, label) in enumerate(zip(data.data, data.targets, strict=True)):
                yield _made_picture(split, f"{classes[label]}/{number:05d}.png", label, pixels)

    return Source(kind=kind, classes=list(classes), pictures=pictures)


@dataclass(frozen=True, kw_only=True)
class TarLayout:
    """How pictures, labels and splits of foreign shards are found.

    Attributes:
        globs: pattern of each split's tars, below the folder; by default the words train, val and test in their
            paths tell, and without these every tar is for training.
        label_key: key of the label in ``.json``, with dots into nested objects; by default ``.cls`` or ``.txt``.
        classes_file: names of the classes, one per line.
    """

    globs: dict[str, str] = field(default_factory=dict)
    label_key: str | None = None
    classes_file: Path | None = None


def webdataset_source(folder: Path, layout: TarLayout) -> Source:
    """Plain tars in the WebDataset convention: the members of a picture share their name up to its first dot.

    Raises:
        InputError: there are no tars, they are compressed or damaged, or a picture has no label.
    """
    tars = webdataset_tars(folder, layout.globs)
    classes = read_classes(layout.classes_file) if layout.classes_file else None
    label_of = {name: label for label, name in enumerate(classes or [])}

    def pictures() -> Iterator[SourcePicture]:
        for split, paths in tars.items():
            for path in paths:
                for picture in _tar_pictures(folder, path, split, layout.label_key):
                    yield picture if classes is None else _numbered(picture, label_of, layout.classes_file)

    notes = [f"{split}: {len(paths)} tars, such as {paths[0]}" for split, paths in tars.items()]
    return Source(kind="webdataset", classes=classes, pictures=pictures, roots=[folder], notes=notes)


def webdataset_tars(folder: Path, globs: dict[str, str]) -> dict[str, list[str]]:
    """Paths below ``folder`` of each split's tars, sorted."""
    if not folder.is_dir():
        raise InputError(f"{folder}: {'not a folder' if folder.exists() else 'no such folder'}")
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    if packed := [file for file in files if file.endswith(COMPRESSED_EXTENSIONS)]:
        raise InputError(f"{folder}: compressed shards such as {packed[0]} have no places to index; unpack them first")
    paths = [file for file in files if file.endswith(".tar")]
    splits: dict[str, list[str]] = {}
    for split, pattern in globs.items():
        splits[split] = [path for path in paths if fnmatch.fnmatch(path, pattern)]
        if not splits[split]:
            raise InputError(f"{folder}: no tar fits --{split} {pattern!r}")
    if not globs:
        for path in paths:
            words = [SPLIT_WORDS[word] for word in re.split(r"[^a-z]+", path.lower()) if word in SPLIT_WORDS]
            splits.setdefault(words[0] if words else "train", []).append(path)
    if not splits.get("train"):
        raise InputError(f"{folder}: holds no tars for training; say which they are with --train 'PATTERN'")
    return splits


def _tar_pictures(folder: Path, path: str, split: str, label_key: str | None) -> Iterator[SourcePicture]:
    file = os.path.join(os.path.abspath(folder), path)
    key: str | None = None
    members: dict[str, tarfile.TarInfo] = {}
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                if not member.isreg():
                    continue
                stem, _, extension = os.path.basename(member.name).partition(".")
                if not stem or not extension or stem.startswith("__"):  # as stock readers pass over these
                    continue
                member_key = os.path.join(os.path.dirname(member.name), stem)
                if member_key != key and members:
                    yield _sample(tar, path, file, split, label_key, members)
                    members = {}
                key = member_key
                if extension.lower() in members:
                    raise InputError(f"{file}: {member.name} is there twice")
                members[extension.lower()] = member
            if members:
                yield _sample(tar, path, file, split, label_key, members)
    except (OSError, tarfile.TarError) as error:
        raise InputError(f"{file}: not a whole tar ({error})") from error


def _sample(
    tar: tarfile.TarFile, path: str, file: str, split: str, label_key: str | None, members: dict[str, tarfile.TarInfo]
) -> SourcePicture:
    found = [extension for extension in members if extension.rpartition(".")[2] in PICTURE_EXTENSIONS]
    first = next(iter(members.values()))
    if len(found) != 1:
        raise InputError(
            f"{file}: {first.name} and what goes with it are {len(found)} pictures, not one ({list(members)})"
        )
    picture = members[found[0]]
    facts = _facts(tar, members["json"], file) if "json" in members else {}
    return SourcePicture(
        split=split,
        name=f"{path}/{picture.name}",
        label=_label(tar, file, picture.name, members, facts, label_key),
        num_bytes=picture.size,
        path=file,
        offset=picture.offset_data,
        facts=json.dumps(facts) if facts else None,
    )


def _label(
    tar: tarfile.TarFile,
    file: str,
    name: str,
    members: dict[str, tarfile.TarInfo],
    facts: dict[str, Any],
    label_key: str | None,
) -> str:
    if label_key is not None:
        value: Any = facts
        for part in label_key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise InputError(f"{file}: {name} has no label under {label_key!r} in its .json, which has {list(facts)}")
        return str(value)
    for extension in LABEL_EXTENSIONS:
        if extension in members:
            text = _content(tar, members[extension]).decode("utf-8", "replace").strip()
            if not text or "\n" in text:
                raise InputError(f"{file}: {members[extension].name} holds {text[:40]!r}, not one label")
            return text
    hint = f"; its .json has {list(facts)}: choose one with --label-key" if facts else ""
    raise InputError(f"{file}: {name} has no label, neither .cls nor .txt{hint}")


def _facts(tar: tarfile.TarFile, member: tarfile.TarInfo, file: str) -> dict[str, Any]:
    try:
        facts = json.loads(_content(tar, member))
    except ValueError as error:
        raise InputError(f"{file}: {member.name} is not JSON ({error})") from error
    return facts if isinstance(facts, dict) else {}


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    content = tar.extractfile(member)
    assert content is not None  # regular files have content
    return content.read()


def _numbered(picture: SourcePicture, label_of: dict[str, int], classes_file: Path | None) -> SourcePicture:
    """With the number of its class, which may already be the label."""
    text = str(picture.label)
    label = int(text) if text.isdecimal() and text not in label_of else label_of.get(text, -1)
    if not 0 <= label < len(label_of):
        raise InputError(f"{picture.name}: label {text!r} is not among the {len(label_of)} classes of {classes_file}")
    return SourcePicture(**{name: getattr(picture, name) for name in picture.__slots__} | {"label": label})


def _made_picture(split: str, name: str, label: int, pixels: np.ndarray) -> SourcePicture:
    data = encode_png(pixels)
    return SourcePicture(split=split, name=name, label=label, num_bytes=len(data), data=data)


def _digit(values: np.ndarray) -> np.ndarray:
    """``(8, 8)`` float, 0 to 16, to ``(32, 32)`` uint8."""
    grey = np.rint(values * (255 / 16)).astype(np.uint8)
    return np.asarray(Image.fromarray(grey).resize((DIGITS_SIZE, DIGITS_SIZE), Image.Resampling.BICUBIC))
