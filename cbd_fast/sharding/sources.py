"""The dataset layouts that people have, each turned into the same list of pictures."""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cbd_fast.errors import InputError
from cbd_fast.sharding.pictures import encode_png

SPLITS = ("train", "val", "test")

DIGITS_NUM_LARGEST = 124  # the rarest digit has 174 pictures, of which 50 are for testing
DIGITS_NUM_TEST_PER_CLASS = 50
DIGITS_IMBALANCE = 100.0
DIGITS_SIZE = 32


@dataclass(frozen=True, kw_only=True)
class SourcePicture:
    """A picture that was offered, not yet read.

    Attributes:
        name: path below the split's root, ``/`` between its parts; unique in the split.
        label: number of the class.
        content: the file's path, or its bytes.
        num_bytes: size of the file.
    """

    name: str
    label: int
    content: Path | bytes
    num_bytes: int

    def read(self) -> bytes:
        if isinstance(self.content, bytes):
            return self.content
        if self.content.exists() and not self.content.is_file():
            raise OSError("not a regular file")  # reading a pipe, say, would never end
        return self.content.read_bytes()


@dataclass(frozen=True, kw_only=True)
class Source:
    """A dataset on disk: class names, pictures per split, and the options that chose them."""

    kind: str
    classes: list[str]
    splits: dict[str, list[SourcePicture]]
    options: dict[str, Any]


def folder_source(roots: dict[str, Path]) -> Source:
    """One folder per split with one folder per class in it; every file below a class's folder is offered.

    Args:
        roots: the folder of each split; ``train`` names the classes, in sorted order.

    Raises:
        InputError: a folder is missing or empty, or another split has classes that ``train`` lacks.
    """
    folders = {split: _class_folders(root) for split, root in roots.items()}
    classes = sorted(folders["train"])
    label_of = {name: label for label, name in enumerate(classes)}
    for split, by_name in folders.items():
        if unknown := sorted(set(by_name) - set(label_of)):
            raise InputError(
                f"{roots[split]}: {len(unknown)} classes that {roots['train']} lacks, such as {_some(unknown)}; "
                f"a model cannot learn them: add training pictures or remove them from {split}"
            )
    splits = {
        split: [picture for name, folder in sorted(by_name.items()) for picture in _pictures(folder, label_of[name])]
        for split, by_name in folders.items()
    }
    for split, pictures in splits.items():
        if not pictures:
            raise InputError(f"{roots[split]}: its class folders hold no files")
    present = {picture.label for picture in splits["train"]}
    if empty := [name for label, name in enumerate(classes) if label not in present]:
        raise InputError(
            f"{roots['train']}: {len(empty)} classes without pictures, such as {_some(empty)}; "
            "add pictures or remove the folders"
        )
    return Source(kind="folder", classes=classes, splits=splits, options={})


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
    pictures = [
        _digit(f"{label}/{number:04d}.png", int(label), values)
        for number, (label, values) in enumerate(zip(digits.target, digits.images, strict=True))
    ]
    by_class = [chosen_order([p for p in pictures if p.label == label], seed) for label in range(10)]
    rest = [picture for chosen in by_class for picture in chosen[DIGITS_NUM_TEST_PER_CLASS:]]
    source = Source(
        kind="digits",
        classes=[str(label) for label in range(10)],
        splits={
            "train": rest,
            "test": [picture for chosen in by_class for picture in chosen[:DIGITS_NUM_TEST_PER_CLASS]],
        },
        options={},
    )
    return with_long_tail(source, DIGITS_IMBALANCE, seed, num_largest=DIGITS_NUM_LARGEST)


def with_long_tail(source: Source, imbalance: float, seed: int, num_largest: int | None = None) -> Source:
    """Keeps an exponentially falling number of training pictures per class.

    Args:
        source: the set to choose from; other splits stay as they are.
        imbalance: pictures of the largest class for one of the smallest, at least 1.
        seed: chooses which pictures stay, as a function of the seed and their names alone.
        num_largest: pictures of the first class; by default as many as the largest class has.

    Raises:
        InputError: a class would be left without pictures.
    """
    by_class: list[list[SourcePicture]] = [[] for _ in source.classes]
    for picture in source.splits["train"]:
        by_class[picture.label].append(picture)
    largest = num_largest or max(len(pictures) for pictures in by_class)
    counts = long_tail_counts(largest, len(source.classes), imbalance)
    if counts[-1] < 1:
        raise InputError(
            f"--imbalance {imbalance:g} leaves no picture of the last class ({largest} in the largest class): "
            f"use at most {largest}"
        )
    kept = [
        picture
        for pictures, count in zip(by_class, counts, strict=True)
        for picture in chosen_order(pictures, seed)[:count]
    ]
    options = source.options | {"imbalance": imbalance}
    return replace(source, splits=source.splits | {"train": kept}, options=options)


def long_tail_counts(num_largest: int, num_classes: int, imbalance: float) -> list[int]:
    """``floor(n_max * F ** (-c / (C - 1)))`` pictures of class c (Cui et al., CVPR 2019)."""
    last = max(num_classes - 1, 1)
    # the small term keeps exact results such as 500 / 100 from being rounded to 4
    return [int(num_largest * imbalance ** (-c / last) + 1e-9) for c in range(num_classes)]


def chosen_order(pictures: Iterable[SourcePicture], seed: int, purpose: str = "choose") -> list[SourcePicture]:
    """Shuffles pictures as a function of the seed, the purpose and each one's name, whatever order they come in."""
    prefix = f"{purpose}\0{seed}\0".encode()

    def key(picture: SourcePicture) -> tuple[bytes, str]:
        name = os.fsencode(picture.name)
        return hashlib.blake2b(prefix + name, digest_size=16).digest(), picture.name

    return sorted(pictures, key=key)


def _class_folders(root: Path) -> dict[str, Path]:
    if not root.is_dir():
        raise InputError(f"{root}: {'not a folder' if root.exists() else 'no such folder'}")
    folders = {entry.name: Path(entry.path) for entry in os.scandir(root) if _is_visible_folder(entry)}
    if not folders:
        raise InputError(f"{root}: holds no class folders; it should hold one folder of pictures per class")
    for name in folders:
        if not name.isprintable():  # control characters, or bytes that are not UTF-8
            raise InputError(f"{root}: the class folder {os.fsencode(name)!r} has no printable UTF-8 name; rename it")
    return folders


def _is_visible_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir() and not entry.name.startswith(".")


def _pictures(class_folder: Path, label: int) -> list[SourcePicture]:
    root = class_folder.parent
    # a link back to where we are, or to other classes, is not followed
    above = [root.resolve(), *root.resolve().parents]
    found, seen = [], {(status.st_dev, status.st_ino) for status in map(os.stat, above)}
    for folder, subfolders, files in os.walk(class_folder, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders.sort()
        for file in sorted(files):
            if not file.startswith("."):
                path = Path(folder, file)
                name = path.relative_to(root).as_posix()
                found.append(SourcePicture(name=name, label=label, content=path, num_bytes=_size(path)))
    return found


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # a dangling link, say: it is skipped with its reason when it is read


def _digit(name: str, label: int, values: np.ndarray) -> SourcePicture:
    """``values``: ``(8, 8)`` float, 0 to 16."""
    grey = np.rint(values * (255 / 16)).astype(np.uint8)
    upscaled = Image.fromarray(grey).resize((DIGITS_SIZE, DIGITS_SIZE), Image.Resampling.BICUBIC)
    data = encode_png(np.asarray(upscaled))
    return SourcePicture(name=name, label=label, content=data, num_bytes=len(data))


def _some(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names[:3])
