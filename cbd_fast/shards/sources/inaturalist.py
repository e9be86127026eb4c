"""The iNaturalist competitions: images in folders, classes in JSON files of the COCO form."""

import argparse
import codecs
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import ijson
import numpy as np

from cbd_fast.errors import InputError, printable
from cbd_fast.files import user_path
from cbd_fast.registry import SOURCES
from cbd_fast.shards.sources.base import (
    Source,
    SourceImage,
    SourceLayout,
    check_folder,
    file_image,
    has_control_characters,
    plain_name,
)

MAX_JSON_DEPTH = 100
MAX_DIGITS = 1000
_LONG_NUMBER = re.compile(rb"[0-9]{%d}" % MAX_DIGITS)


@SOURCES.register("inaturalist")
class INaturalist(SourceLayout):
    """The JSON files of the competitions of 2017, 2018, 2019 and 2021."""

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Adds the folder of the images and the annotations of each split."""
        parser.add_argument(
            "--images", type=user_path, required=True, metavar="ROOT", help="where the file names start"
        )
        parser.add_argument("--train", type=user_path, required=True, metavar="JSON")
        parser.add_argument(
            "--val", type=user_path, metavar="JSON", help="becomes the test split, as in the literature"
        )

    @staticmethod
    def open(arguments: argparse.Namespace) -> Source:
        """The annotations that the options name."""
        annotations = {"train": arguments.train} | ({"test": arguments.val} if arguments.val else {})
        return inaturalist_source(arguments.images, annotations)


def inaturalist_source(root: Path, annotations: dict[str, Path]) -> Source:
    """The competitions' JSON of 2017, 2018, 2019 and 2021: ``images``, ``annotations`` and ``categories``.

    Args:
        root: the folder that the ``file_name`` of each image starts from.
        annotations: the file of each split; the one of ``train`` has the categories.

    Raises:
        InputError: a file is missing or not of this form.
    """
    check_folder(root)
    categories = {
        category["id"]: str(category.get("name", category["id"]))
        for category in _json_items(annotations["train"], "categories.item", id=int)
    }
    if not categories:
        raise InputError(f"{annotations['train']}: has no 'categories'; the file of training annotations should")
    if odd := [name for name in categories.values() if has_control_characters(name)]:
        raise InputError(f"{annotations['train']}: the category {odd[0]!r} has characters that cannot be shown")
    label_of = {number: label for label, number in enumerate(sorted(categories))}

    def images() -> Iterator[SourceImage]:
        for split, path in annotations.items():
            category_of = _categories_by_image(path)
            num_images = 0
            for image in _json_items(path, "images.item", id=int, file_name=str):
                category = category_of.get(image["id"])
                if category not in label_of:
                    raise InputError(
                        f"{path}: image {image['id']} ({image['file_name']!r}) has "
                        + ("no annotation" if category is None else f"the unknown category {category}")
                    )
                num_images += 1
                yield file_image(split, root, plain_name(image["file_name"], root), label_of[category])
            if num_images != len(category_of):
                raise InputError(
                    f"{path}: {len(category_of)} annotated images, but 'images' has {num_images}; is the file whole?"
                )

    notes = ["test: the published val; the labels of the published test were never released"]
    # species share common names, and those of 2018 and 2019 are numbers
    names = [categories[number] for number in sorted(categories)]
    if len(set(names)) < len(names):
        names = [f"{number} {categories[number]}" for number in sorted(categories)]
    return Source(kind="inaturalist", classes=names, images=images, roots=[root], notes=notes)


def _json_items(path: Path, prefix: str, **types: type) -> Iterator[dict[str, Any]]:
    """The objects of one list of a JSON file, which may be larger than memory; each has keys of these types."""
    try:
        with open(path, "rb") as file:
            if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
                file.seek(0)
            for item in ijson.items(_ShallowJson(file, path), prefix):
                for key, kind in types.items():
                    if not isinstance(item, dict) or not isinstance(item.get(key), kind):
                        raise InputError(f"{path}: {prefix} {item!r} has no {key!r} of type {kind.__name__}")
                yield item
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except ijson.JSONError as error:
        raise InputError(f"{path}: not whole JSON ({_reason(error)})") from error


def _reason(error: ijson.JSONError) -> str:
    """What is wrong with JSON; the parser says it in bytes."""
    message = error.args[0] if error.args else ""
    text = message.decode("utf-8", "replace") if isinstance(message, bytes) else str(error)
    return printable(text.strip().split("\n")[0])


class _ShallowJson:
    """A JSON file that is read in pieces, and refused where the parser would take endless memory, or crash."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path
        self._depth, self._is_in_text, self._rest = 0, False, b""

    def read(self, size: int) -> bytes:
        """The next bytes of the file; ``InputError`` if there are more brackets in each other than any dataset has."""
        piece = self._file.read(size)
        if _LONG_NUMBER.search(piece):
            raise InputError(f"{self._path}: holds a number of more than {MAX_DIGITS} digits, which is no annotations")
        whole = self._rest + piece
        plain = whole[: len(whole.rstrip(b"\\"))]  # what a backslash escapes may be in the next piece
        self._rest = whole[len(plain) :]
        if len(self._rest) % 2 == 0:
            plain, self._rest = plain + self._rest, b""
        letters = np.frombuffer(plain.replace(b"\\\\", b"").replace(b'\\"', b""), np.uint8)
        is_in_text = (np.cumsum(letters == ord('"')) + self._is_in_text) % 2 == 1
        opened = np.isin(letters, (ord("["), ord("{"))).astype(np.int64) - np.isin(letters, (ord("]"), ord("}")))
        depths = self._depth + np.cumsum(np.where(is_in_text, 0, opened))
        if len(depths):
            self._depth, self._is_in_text = int(depths[-1]), bool(is_in_text[-1])
            if depths.max() > MAX_JSON_DEPTH:
                raise InputError(f"{self._path}: nested deeper than {MAX_JSON_DEPTH} times, which is no annotations")
        return piece


class _Categories:
    """The category of each image, in 16 bytes an image."""

    def __init__(self, pairs: np.ndarray) -> None:
        self._pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]

    def __len__(self) -> int:
        return len(self._pairs)

    def get(self, image: int) -> int | None:
        row = int(np.searchsorted(self._pairs[:, 0], image))
        if row == len(self._pairs) or self._pairs[row, 0] != image:
            return None
        return int(self._pairs[row, 1])


def _categories_by_image(path: Path) -> _Categories:
    numbers = (
        annotation[key]
        for annotation in _json_items(path, "annotations.item", image_id=int, category_id=int)
        for key in ("image_id", "category_id")
    )
    try:
        pairs = np.fromiter(numbers, np.int64).reshape(-1, 2)
    except OverflowError as error:
        raise InputError(f"{path}: 'annotations' has ids of more than 64 bits") from error
    if not len(pairs):
        raise InputError(f"{path}: has no 'annotations'; those of the competition's test images were not published")
    if len(np.unique(pairs[:, 0])) < len(pairs):
        raise InputError(f"{path}: some images have several annotations; an image here has one class")
    return _Categories(pairs)
