"""Image folders: one folder per split, with one folder of images per class in it."""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

from cbd_fast.errors import InputError
from cbd_fast.registry import SOURCES
from cbd_fast.shards.sources.base import (
    Source,
    SourceImage,
    SourceLayout,
    check_folder,
    file_image,
    files_below,
    given_splits,
    refuse_unlisted,
)

NUM_SHOWN = 3


@SOURCES.register("folder")
class ImageFolder(SourceLayout):
    """One folder per split, with one folder of images per class in it."""

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Adds the folder of each split."""
        parser.add_argument("--train", type=Path, required=True, metavar="DIR", help="its folders name the classes")
        parser.add_argument("--val", type=Path, metavar="DIR")
        parser.add_argument("--test", type=Path, metavar="DIR")

    @staticmethod
    def open(arguments: argparse.Namespace) -> Source:
        """The folders that the options name."""
        return folder_source(given_splits(arguments))


def folder_source(roots: dict[str, Path]) -> Source:
    """One folder per split with one folder per class in it; every file below the folder of a class is taken.

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
            shown = ", ".join(map(repr, unknown[:NUM_SHOWN]))
            raise InputError(
                f"{roots[split]}: {len(unknown)} classes that {roots['train']} lacks, such as {shown}; "
                f"a model cannot learn them: add training images or remove them from {split}"
            )

    def images() -> Iterator[SourceImage]:
        for split, by_name in folders.items():
            is_empty = True
            for name, folder in by_name.items():
                for file in files_below(folder):
                    is_empty = False
                    yield file_image(split, roots[split], f"{name}/{file}", label_of[name])
            if is_empty:
                raise InputError(f"{roots[split]}: its class folders hold no files")

    searched = list(roots.values())
    return Source(kind="folder", classes=classes, images=images, roots=searched, searched=searched)


def _class_folders(root: Path) -> dict[str, Path]:
    check_folder(root)
    try:
        folders = {entry.name: Path(entry.path) for entry in os.scandir(root) if _is_visible_folder(entry)}
    except OSError as error:
        refuse_unlisted(error)
    if not folders:
        raise InputError(f"{root}: holds no class folders; it should hold one folder of images per class")
    for name in folders:
        if not name.isprintable():  # control characters, or bytes that are not UTF-8
            raise InputError(f"{root}: the class folder {os.fsencode(name)!r} has no printable UTF-8 name; rename it")
    return folders


def _is_visible_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir() and not entry.name.startswith(".")
