"""Lists of images: text files with a line ``relative/path label`` per image, as ImageNet-LT and Places-LT have."""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

from cbd_fast.errors import InputError
from cbd_fast.files import user_path
from cbd_fast.registry import SOURCES
from cbd_fast.shards.sources.base import (
    MAX_GAPS,
    MAX_LABEL,
    MAX_SHOWN,
    Source,
    SourceImage,
    SourceLayout,
    check_folder,
    file_image,
    given_splits,
    plain_name,
    read_classes,
    read_lines,
)
from cbd_fast.shards.sources.label_texts import is_number


@SOURCES.register("list")
class ImageList(SourceLayout):
    """Text files with a line 'relative/path label' per image, as of ImageNet-LT and Places-LT."""

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Adds the folder of the images and the list of each split."""
        parser.add_argument("--images", type=user_path, required=True, metavar="ROOT", help="where the paths start")
        parser.add_argument("--train", type=user_path, required=True, metavar="LIST")
        parser.add_argument("--val", type=user_path, metavar="LIST")
        parser.add_argument("--test", type=user_path, metavar="LIST")
        parser.add_argument("--classes", type=user_path, metavar="FILE", help="names of the classes, one per line")

    @staticmethod
    def open(arguments: argparse.Namespace) -> Source:
        """The lists that the options name."""
        return list_source(arguments.images, given_splits(arguments), arguments.classes)


def list_source(root: Path, lists: dict[str, Path], classes_file: Path | None = None) -> Source:
    """Text files with a line ``relative/path label`` per image, as ImageNet-LT and Places-LT are published.

    Args:
        root: the folder that the paths start from.
        lists: the file of each split.
        classes_file: names of the classes, one per line; by default each class is named after the one folder that
            its training images are in, or if there is no such folder, by its number.

    Raises:
        InputError: a file is missing, or a line is not a path and a label.
    """
    check_folder(root)
    classes = _classes_of_folders(lists["train"], root)
    if classes_file is not None:
        num_classes, classes = len(classes), read_classes(classes_file)
        if len(classes) < num_classes:
            raise InputError(
                f"{classes_file}: names {len(classes)} classes, but {lists['train']} has labels up to {num_classes - 1}"
            )

    def images() -> Iterator[SourceImage]:
        for split, path in lists.items():
            for name, label in _names_and_labels(path, root):
                if label >= len(classes):
                    raise InputError(
                        f"{path}: {name!r} has label {label}, but {lists['train']} has only labels up to "
                        f"{len(classes) - 1}; a model cannot learn the class"
                    )
                yield file_image(split, root, name, label)

    return Source(kind="list", classes=classes, images=images, roots=[root])


def _classes_of_folders(path: Path, root: Path) -> list[str]:
    """Each class named after the one folder that its images are in, or if there is no such folder, by its number."""
    folder_of: dict[int, str | None] = {}
    for name, label in _names_and_labels(path, root):
        folder = os.path.basename(os.path.dirname(name))
        folder_of[label] = folder if folder_of.setdefault(label, folder) == folder else None
    largest = max(folder_of, default=-1)
    if largest - len(folder_of) > MAX_GAPS:
        raise InputError(
            f"{path}: has {len(folder_of):,} different labels, but the largest is {largest}; number them from 0 "
            "without gaps"
        )
    folders = [folder_of.get(label) for label in range(largest + 1)]
    is_named = all(folders) and len(set(folders)) == len(folders)
    return [str(folder) if is_named else str(label) for label, folder in enumerate(folders)]


def _names_and_labels(path: Path, root: Path) -> Iterator[tuple[str, int]]:
    is_empty = True
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        name, _, label = line.rstrip().rpartition(" ") if "\t" not in line else line.rstrip().rpartition("\t")
        if not name or "\0" in name or not is_number(label):
            hint = "; it seems to be UTF-16 without its mark, or no text: save it as UTF-8" if "\0" in line else ""
            raise InputError(
                f"{path}: line {number}: {line[:MAX_SHOWN]!r} is not 'relative/path label' with a label of 0 or more, "
                f"at most {MAX_LABEL}{hint}"
            )
        is_empty = False
        yield plain_name(name.rstrip(), root), int(label)
    if is_empty:
        raise InputError(f"{path}: lists no images")
