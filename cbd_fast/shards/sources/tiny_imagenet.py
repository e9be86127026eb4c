"""Tiny ImageNet, as Stanford's course CS231n published it."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from cbd_fast.errors import InputError
from cbd_fast.files import user_path
from cbd_fast.registry import SOURCES
from cbd_fast.shards.sources.base import (
    Source,
    SourceImage,
    SourceLayout,
    check_folder,
    file_image,
    files_below,
    read_lines,
)
from cbd_fast.shards.sources.not_images import PassedOver


@SOURCES.register("tiny-imagenet")
class TinyImageNet(SourceLayout):
    """The folder tiny-imagenet-200; its val becomes the test split, as in the literature."""

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Adds the folder."""
        parser.add_argument("folder", type=user_path, metavar="DIR")

    @staticmethod
    def open(arguments: argparse.Namespace) -> Source:
        """The folder that the command line names."""
        return tiny_imagenet_source(arguments.folder)


def tiny_imagenet_source(root: Path) -> Source:
    """``tiny-imagenet-200`` as Stanford's CS231n published it; its validation images are for testing.

    Args:
        root: the folder that holds ``wnids.txt``, ``words.txt``, ``train`` and ``val``.

    Raises:
        InputError: a file is missing or names an unknown class.
    """
    check_folder(root)
    classes = [line for line in read_lines(root / "wnids.txt") if line]
    label_of = {name: label for label, name in enumerate(classes)}
    words = dict(line.split("\t", 1) for line in read_lines(root / "words.txt") if "\t" in line)

    def images() -> Iterator[SourceImage]:
        for name, label in label_of.items():
            folder = root / "train" / name / "images"
            check_folder(folder)
            for file in files_below(folder, PassedOver()):
                yield file_image("train", root, f"train/{name}/images/{file}", label)
        annotations = root / "val" / "val_annotations.txt"
        for number, line in enumerate(read_lines(annotations), 1):
            if not line:
                continue
            file, *rest = line.split("\t")
            if not rest or rest[0] not in label_of:
                raise InputError(f"{annotations}: line {number}: {line!r} is not a file and a class of wnids.txt")
            yield file_image("test", root, f"val/images/{file}", label_of[rest[0]])

    return Source(
        kind="tiny-imagenet",
        classes=[f"{name} {words[name]}" if name in words else name for name in classes],
        images=images,
        roots=[root],
        searched=[root],
        notes=["test: the published val; the labels of the published test were never released"],
    )
