"""Layouts of one file per image, each turned into the same stream of images."""

import os
import posixpath
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from cbd_fast.errors import InputError
from cbd_fast.shards.sources.base import MAX_LABEL, SourceImage


@dataclass(frozen=True, kw_only=True)
class Source:
    """A dataset on disk.

    Attributes:
        kind: name of the layout.
        classes: their names in the order of their numbers; None if the labels of the images tell.
        images: gives what is offered, one after the other.
        roots: folders that must stay there while the images are read.
        searched: folders in which everything found is taken, so that nothing else may be written there.
        options: what else decided which images are offered.
        notes: what people should know of the splits; they go into the manifest.
    """

    kind: str
    classes: list[str] | None
    images: Callable[[], Iterator[SourceImage]]
    roots: list[Path] = field(default_factory=list)
    searched: list[Path] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


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
                f"a model cannot learn them: add training images or remove them from {split}"
            )

    def offered() -> Iterator[SourceImage]:
        for split, by_name in folders.items():
            is_empty = True
            for name, folder in by_name.items():
                for file in _files_below(folder):
                    is_empty = False
                    yield file_image(split, roots[split], f"{name}/{file}", label_of[name])
            if is_empty:
                raise InputError(f"{roots[split]}: its class folders hold no files")

    searched = list(roots.values())
    return Source(kind="folder", classes=classes, images=offered, roots=searched, searched=searched)


def list_source(images: Path, lists: dict[str, Path], classes_file: Path | None = None) -> Source:
    """Text files with a line ``relative/path label`` per image, as ImageNet-LT and Places-LT are published.

    Args:
        images: the folder that the paths start from.
        lists: the file of each split.
        classes_file: names of the classes, one per line; by default each class is named after the one folder that
            its training images are in, or if there is no such folder, by its number.

    Raises:
        InputError: a file is missing, or a line is not a path and a label.
    """
    check_folder(images)
    folder_of: dict[int, str | None] = {}
    for name, label in _listed(lists["train"], images):
        folder = os.path.basename(os.path.dirname(name))
        folder_of[label] = folder if folder_of.setdefault(label, folder) == folder else None
    num_classes = max(folder_of, default=-1) + 1
    names = [folder_of.get(label) for label in range(num_classes)]
    is_named = all(names) and len(set(names)) == num_classes
    classes = [str(name) if is_named else str(label) for label, name in enumerate(names)]
    if classes_file is not None:
        classes = read_classes(classes_file)
        if len(classes) < num_classes:
            raise InputError(
                f"{classes_file}: names {len(classes)} classes, but {lists['train']} has labels up to {num_classes - 1}"
            )

    def offered() -> Iterator[SourceImage]:
        for split, path in lists.items():
            for name, label in _listed(path, images):
                if label >= len(classes):
                    raise InputError(
                        f"{path}: {name!r} has label {label}, but {lists['train']} has only labels up to "
                        f"{len(classes) - 1}; a model cannot learn the class"
                    )
                yield file_image(split, images, name, label)

    return Source(kind="list", classes=classes, images=offered, roots=[images])


def tiny_imagenet_source(root: Path) -> Source:
    """``tiny-imagenet-200`` as Stanford's CS231n published it; its validation images are for testing.

    Raises:
        InputError: a file is missing or names an unknown class.
    """
    check_folder(root)
    classes = [line for line in _lines(root / "wnids.txt") if line]
    label_of = {name: label for label, name in enumerate(classes)}
    words = dict(line.split("\t", 1) for line in _lines(root / "words.txt") if "\t" in line)

    def offered() -> Iterator[SourceImage]:
        for name, label in label_of.items():
            folder = root / "train" / name / "images"
            check_folder(folder)
            for file in _files_below(folder):
                yield file_image("train", root, f"train/{name}/images/{file}", label)
        annotations = root / "val" / "val_annotations.txt"
        for number, line in enumerate(_lines(annotations), 1):
            if not line:
                continue
            file, *rest = line.split("\t")
            if not rest or rest[0] not in label_of:
                raise InputError(f"{annotations}: line {number}: {line!r} is not a file and a class of wnids.txt")
            yield file_image("test", root, f"val/images/{file}", label_of[rest[0]])

    return Source(
        kind="tiny-imagenet",
        classes=[f"{name} {words[name]}" if name in words else name for name in classes],
        images=offered,
        roots=[root],
        searched=[root],
        notes=["test: the published val; the labels of the published test were never released"],
    )


def file_image(split: str, root: Path, name: str, label: int) -> SourceImage:
    """An image that has a file of its own, ``name`` below ``root``."""
    path = os.path.join(os.path.abspath(root), name)
    try:
        status = os.stat(path)
        num_bytes: int | None = status.st_size
        mtime_ns = status.st_mtime_ns
    except (OSError, ValueError):  # missing, a dangling link, or no possible name of a file
        num_bytes, mtime_ns = None, 0
    return SourceImage(split=split, name=name, label=label, num_bytes=num_bytes, path=path, mtime_ns=mtime_ns)


def read_classes(path: Path) -> list[str]:
    """Names of classes, one per line, in the order of their numbers."""
    classes = list(_lines(path))
    while classes and not classes[-1]:
        classes.pop()
    if len(set(classes)) < len(classes) or not all(classes):
        raise InputError(f"{path}: must hold one name per line, each once")
    return classes


def _listed(path: Path, images: Path) -> Iterator[tuple[str, int]]:
    is_empty = True
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        name, _, label = line.rstrip().rpartition(" ") if "\t" not in line else line.rstrip().rpartition("\t")
        if not name or not label.isdecimal() or "\0" in name:
            raise InputError(f"{path}: line {number}: {line!r} is not 'relative/path label' with a label of 0 or more")
        if int(label) > MAX_LABEL:
            raise InputError(f"{path}: line {number}: label {label} is no number of a class")
        is_empty = False
        yield plain_name(name.rstrip(), images), int(label)
    if is_empty:
        raise InputError(f"{path}: lists no images")


def plain_name(name: str, root: Path) -> str:
    """The one name below ``root`` of a file that may be listed as ``./a//b.jpg`` or with its whole path."""
    plain = posixpath.normpath(name)
    above = os.path.abspath(root).rstrip("/") + "/"
    return plain.removeprefix(above)


def _lines(path: Path) -> Iterator[str]:
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
            for line in file:
                yield line.rstrip("\r\n")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error


def check_folder(folder: Path) -> None:
    """Raises ``InputError`` if there is no such folder."""
    if not folder.is_dir():
        raise InputError(f"{folder}: {'not a folder' if folder.exists() else 'no such folder'}")


def _class_folders(root: Path) -> dict[str, Path]:
    check_folder(root)
    try:
        folders = {entry.name: Path(entry.path) for entry in os.scandir(root) if _is_visible_folder(entry)}
    except OSError as error:
        _refuse(error)
    if not folders:
        raise InputError(f"{root}: holds no class folders; it should hold one folder of images per class")
    for name in folders:
        if not name.isprintable():  # control characters, or bytes that are not UTF-8
            raise InputError(f"{root}: the class folder {os.fsencode(name)!r} has no printable UTF-8 name; rename it")
    return folders


def _is_visible_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir() and not entry.name.startswith(".")


def _files_below(class_folder: Path) -> Iterator[str]:
    """Paths below a folder of every visible file."""
    # a link back to where we are, or to other classes, is not followed
    root = class_folder.parent.resolve()
    seen = {(status.st_dev, status.st_ino) for status in map(os.stat, [root, *root.parents])}
    for folder, subfolders, files in os.walk(class_folder, onerror=_refuse, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders.sort()
        prefix = "" if folder == os.fspath(class_folder) else os.path.relpath(folder, class_folder) + "/"
        yield from (prefix + file for file in files if not file.startswith("."))


def _refuse(error: OSError) -> NoReturn:
    """A folder whose files nobody knows is no folder without files."""
    raise InputError(f"{error.filename}: cannot be listed ({error.strerror}); allow reading it, or move it") from error


def _some(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names[:3])
