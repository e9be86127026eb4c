"""The iNaturalist competitions: images in folders, classes in JSON files of the COCO form."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ijson
import numpy as np

from cbd_fast.errors import InputError, first_line
from cbd_fast.registry import SOURCES
from cbd_fast.shards.sources.base import Source, SourceImage, SourceLayout, check_folder, file_image, plain_name


@SOURCES.register("inaturalist")
class INaturalist(SourceLayout):
    """The JSON files of the competitions of 2017, 2018, 2019 and 2021."""

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Adds the folder of the images and the annotations of each split."""
        parser.add_argument("--images", type=Path, required=True, metavar="ROOT", help="where the file names start")
        parser.add_argument("--train", type=Path, required=True, metavar="JSON")
        parser.add_argument("--val", type=Path, metavar="JSON", help="becomes the test split, as in the literature")

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
            for item in ijson.items(file, prefix):
                for key, kind in types.items():
                    if not isinstance(item, dict) or not isinstance(item.get(key), kind):
                        raise InputError(f"{path}: {prefix} {item!r} has no {key!r} of type {kind.__name__}")
                yield item
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except ijson.JSONError as error:
        raise InputError(f"{path}: not whole JSON ({first_line(error)})") from error


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
