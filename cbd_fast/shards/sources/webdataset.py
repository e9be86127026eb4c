"""WebDataset shards that somebody else wrote, as a source."""

import argparse
import fnmatch
import json
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from cbd_fast.errors import InputError
from cbd_fast.registry import SOURCES
from cbd_fast.shards.sources.base import (
    SPLITS,
    Source,
    SourceImage,
    SourceLayout,
    check_folder,
    given_splits,
    printable,
    read_classes,
)

LABEL_EXTENSIONS = ("cls", "txt")
COMPRESSED_EXTENSIONS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
SPLIT_WORDS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "eval": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


@SOURCES.register("webdataset")
class WebDataset(SourceLayout):
    """Tars that somebody else wrote (cbd-fast index uses them as they are)."""

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Adds the folder, and options that say where images, labels and splits are."""
        parser.add_argument("folder", type=Path, metavar="DIR", help="holds the tars, at any depth")
        for split in SPLITS:
            parser.add_argument(
                f"--{split}",
                metavar="PATTERN",
                help="tars of this split, such as 'train-*.tar' (default: by the word in their path)",
            )
        parser.add_argument(
            "--image", metavar="EXT", help="extension of the image, such as 'image.jpg', where a sample has several"
        )
        parser.add_argument(
            "--label-key", metavar="KEY", help="of the label in .json (default: the label is .cls or .txt)"
        )
        parser.add_argument("--classes", type=Path, metavar="FILE", help="names of the classes, one per line")

    @staticmethod
    def open(arguments: argparse.Namespace) -> Source:
        """The tars that the command line names."""
        layout = TarLayout(
            globs=given_splits(arguments),
            image=arguments.image,
            label_key=arguments.label_key,
            classes_file=arguments.classes,
        )
        return webdataset_source(arguments.folder, layout)


@dataclass(frozen=True, kw_only=True)
class TarLayout:
    """Where images, labels and splits are in foreign shards.

    Attributes:
        globs: pattern of each split's tars, below the folder; by default the words train, val and test in their
            paths tell, and without these words every tar is for training.
        image: extension of the image, where a sample has several; by default the one without a further dot.
        label_key: key of the label in ``.json``, with dots into nested objects; by default ``.cls`` or ``.txt``.
        classes_file: names of the classes, one per line.
    """

    globs: dict[str, str] = field(default_factory=dict)
    image: str | None = None
    label_key: str | None = None
    classes_file: Path | None = None


def webdataset_source(folder: Path, layout: TarLayout) -> Source:
    """Plain tars in the WebDataset convention: the members of an image share their name up to its first dot.

    Args:
        folder: the folder that holds the tars, at any depth.
        layout: where images, labels and splits are.

    Raises:
        InputError: there are no tars, they are compressed or damaged, or an image has no label.
    """
    tars = webdataset_tars(folder, layout.globs)
    classes = read_classes(layout.classes_file) if layout.classes_file else None
    label_of = {name: label for label, name in enumerate(classes or [])}
    notes = [f"{split}: {len(paths)} tars, such as {paths[0]}" for split, paths in tars.items()]

    def images() -> Iterator[SourceImage]:
        for split, paths in tars.items():
            for path in paths:
                for image in _tar_images(folder, path, split, layout, notes):
                    yield image if classes is None else _numbered(image, label_of, layout.classes_file)

    return Source(kind="webdataset", classes=classes, images=images, roots=[folder], searched=[folder], notes=notes)


def webdataset_tars(folder: Path, globs: dict[str, str]) -> dict[str, list[str]]:
    """Paths of each split's tars below a folder, sorted.

    Args:
        folder: the folder that holds the tars, at any depth.
        globs: pattern of each split's tars, or empty: then words in their paths tell.

    Raises:
        InputError: a pattern fits no tar, a tar fits several, no tar is for training, or some are compressed.
    """
    check_folder(folder)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    if packed := [file for file in files if file.endswith(COMPRESSED_EXTENSIONS)]:
        raise InputError(f"{folder}: compressed shards such as {packed[0]} cannot be indexed; unpack them first")
    paths = [file for file in files if file.endswith(".tar")]
    if odd := [path for path in paths if not path.isprintable()]:
        raise InputError(f"{folder}: the tar {os.fsencode(odd[0])!r} has no printable UTF-8 name; rename it")
    splits: dict[str, list[str]] = {}
    for split, pattern in globs.items():
        splits[split] = [path for path in paths if fnmatch.fnmatch(path, pattern)]
        if not splits[split]:
            raise InputError(f"{folder}: no tar fits --{split} {pattern!r}")
    chosen = [path for of_split in splits.values() for path in of_split]
    if twice := sorted({path for path in chosen if chosen.count(path) > 1}):
        raise InputError(f"{folder}: {len(twice)} tars fit several patterns, such as {twice[0]}; narrow them")
    if not globs:
        for path in paths:
            splits.setdefault(_split_of(path), []).append(path)
    if not splits.get("train"):
        raise InputError(f"{folder}: holds no tars for training; say which they are with --train 'PATTERN'")
    return splits


def _split_of(path: str) -> str:
    """The split that a word in the tar's own name, or in the nearest folder, names; else ``train``."""
    for part in reversed(path.lower().split("/")):
        if words := [SPLIT_WORDS[word] for word in re.split(r"[^a-z]+", part) if word in SPLIT_WORDS]:
            return words[0]
    return "train"


def _tar_images(folder: Path, path: str, split: str, layout: TarLayout, notes: list[str]) -> Iterator[SourceImage]:
    file = os.path.join(os.path.abspath(folder), path)
    mtime_ns = os.stat(file).st_mtime_ns
    without: list[str] = []
    try:
        with tarfile.open(file, "r:") as tar:
            for members in _samples(tar, file):
                image = _image_of(members, file, layout.image)
                if image is None:
                    without.append(next(iter(members.values())).name)
                    continue
                metadata = _metadata(tar, members["json"], file) if "json" in members else {}
                yield SourceImage(
                    split=split,
                    name=f"{path}/{image.name}",
                    label=_label(tar, file, image.name, members, metadata, layout.label_key),
                    num_bytes=image.size,
                    path=file,
                    offset=image.offset_data,
                    metadata=json.dumps(metadata) if metadata else None,
                    mtime_ns=mtime_ns,
                )
            _check_end(file, tar.offset)
    except (OSError, tarfile.TarError) as error:
        raise InputError(f"{file}: not a whole tar ({error})") from error
    if without:
        notes.append(
            f"{path}: {len(without)} samples without an image are passed over, such as {printable(without[0])}"
        )


def _samples(tar: tarfile.TarFile, file: str) -> Iterator[dict[str, tarfile.TarInfo]]:
    """Members by extension, of each run of members that share their name up to its first dot."""
    key: str | None = None
    members: dict[str, tarfile.TarInfo] = {}
    for member in tar:
        folder, name = os.path.split(member.name)
        stem, _, extension = name.partition(".")
        is_about_the_tar = not folder and name.startswith("__") and name.endswith("__")
        if not member.isreg() or not stem or not extension or is_about_the_tar:  # as stock readers pass over these
            continue
        if (member_key := os.path.join(folder, stem)) != key and members:
            yield members
            members = {}
        key = member_key
        if extension.lower() in members:
            raise InputError(f"{file}: {member.name} is there twice")
        members[extension.lower()] = member
    if members:
        yield members


def _image_of(members: dict[str, tarfile.TarInfo], file: str, image_extension: str | None) -> tarfile.TarInfo | None:
    if image_extension is not None:
        return members.get(image_extension.lower())
    extensions = [extension for extension in members if extension.rpartition(".")[2] in _image_extensions()]
    if len(extensions) > 1:
        extensions = [extension for extension in extensions if "." not in extension] or extensions
    if len(extensions) > 1:
        name = members[extensions[0]].name
        raise InputError(f"{file}: beside {name} there are other images ({extensions}); choose one with --image")
    return members[extensions[0]] if extensions else None


@cache
def _image_extensions() -> frozenset[str]:
    """Extensions of all formats that Pillow reads, without the dot."""
    return frozenset(name[1:] for name, kind in Image.registered_extensions().items() if kind in Image.OPEN)


def _check_end(file: str, offset: int) -> None:
    """A damaged header ends a tar for every reader; what is behind it would be lost without a word."""
    with open(file, "rb") as opened:
        opened.seek(offset)
        while piece := opened.read(1 << 20):
            if piece.strip(b"\0"):
                raise InputError(
                    f"{file}: goes on after its end at byte {offset:,}; it is damaged there, or several tars in one"
                )


def _label(
    tar: tarfile.TarFile,
    file: str,
    name: str,
    members: dict[str, tarfile.TarInfo],
    metadata: dict[str, Any],
    label_key: str | None,
) -> str:
    if label_key is not None:
        value: Any = metadata
        for part in label_key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise InputError(
                f"{file}: {name} has no label under {label_key!r} in its .json, which has {list(metadata)}"
            )
        return str(value)
    for extension in LABEL_EXTENSIONS:
        if extension in members:
            text = _content(tar, members[extension]).decode("utf-8", "replace").strip()
            if not text or "\n" in text:
                raise InputError(f"{file}: {members[extension].name} holds {text[:40]!r}, not one label")
            return text
    hint = f"; its .json has {list(metadata)}: choose one with --label-key" if metadata else ""
    raise InputError(f"{file}: {name} has no label, neither .cls nor .txt{hint}")


def _metadata(tar: tarfile.TarFile, member: tarfile.TarInfo, file: str) -> dict[str, Any]:
    try:
        metadata = json.loads(_content(tar, member))
    except ValueError as error:
        raise InputError(f"{file}: {member.name} is not JSON ({error})") from error
    return metadata if isinstance(metadata, dict) else {}


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    content = tar.extractfile(member)
    assert content is not None  # regular files have content
    return content.read()


def _numbered(image: SourceImage, label_of: dict[str, int], classes_file: Path | None) -> SourceImage:
    """The image with the number of its class, which may already be its label."""
    text = str(image.label)
    label = int(text) if text.isdecimal() and text not in label_of else label_of.get(text, -1)
    if not 0 <= label < len(label_of):
        raise InputError(f"{image.name}: label {text!r} is not among the {len(label_of)} classes of {classes_file}")
    return replace(image, label=label)
