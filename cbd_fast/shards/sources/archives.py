"""Layouts of many images in one file: handwritten digits and CIFAR."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from cbd_fast.errors import InputError
from cbd_fast.files import user_path
from cbd_fast.registry import SOURCES
from cbd_fast.shards.long_tail import choice_key, exponential_counts
from cbd_fast.shards.png import encode_png
from cbd_fast.shards.sources.base import Source, SourceImage, SourceLayout

DIGITS_NUM_LARGEST = 124  # the rarest digit has 174 images, of which 50 are for testing
DIGITS_NUM_TEST_PER_CLASS = 50
DIGITS_IMBALANCE = 100.0
DIGITS_SIZE = 32  # of the upscaled images, in pixels


@SOURCES.register("digits")
class Digits(SourceLayout):
    """Scikit-learn's handwritten digits, long-tailed."""

    is_fixed: ClassVar[bool] = True

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Adds nothing: the images are inside scikit-learn."""

    @staticmethod
    def open(arguments: argparse.Namespace) -> Source:
        """The digits that ``--seed`` chooses."""
        return digits_source(arguments.seed)


@SOURCES.register("cifar10")
class Cifar10(SourceLayout):
    """The official python archive, downloaded into the folder where it is not there."""

    kind: ClassVar[str] = "cifar10"

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Adds the folder."""
        parser.add_argument("folder", type=user_path, metavar="DIR")

    @classmethod
    def open(cls, arguments: argparse.Namespace) -> Source:
        """The archive in the folder that the command line names."""
        return cifar_source(cls.kind, arguments.folder)


@SOURCES.register("cifar100")
class Cifar100(Cifar10):
    """The official python archive, downloaded into the folder where it is not there."""

    kind: ClassVar[str] = "cifar100"


def digits_source(seed: int) -> Source:
    """The 1797 handwritten digits of scikit-learn, 8 x 8 upscaled to 32 x 32, as a long-tailed set of imbalance 100.

    50 images of each class are for testing; of the others the classes 0 to 9 keep 124 down to 1.

    Args:
        seed: chooses the images.

    Raises:
        InputError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError(
            "the source 'digits' needs scikit-learn, which ships the images: pip install 'cbd-fast[digits]'"
        ) from error
    digits = load_digits()

    def images() -> Iterator[SourceImage]:
        for label, count in enumerate(exponential_counts(DIGITS_NUM_LARGEST, 10, DIGITS_IMBALANCE)):
            names = {f"{label}/{number:04d}.png": number for number in np.flatnonzero(digits.target == label)}
            chosen = sorted(names, key=lambda name: choice_key(seed, name))
            for position, name in enumerate(chosen[: DIGITS_NUM_TEST_PER_CLASS + count]):
                split = "test" if position < DIGITS_NUM_TEST_PER_CLASS else "train"
                yield _made_image(split, name, label, _digit(digits.images[names[name]]))

    return Source(
        kind="digits",
        classes=[str(label) for label in range(10)],
        images=images,
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

    def images() -> Iterator[SourceImage]:
        for split, data in splits.items():
            for number, (pixels, label) in enumerate(zip(data.data, data.targets, strict=True)):
                yield _made_image(split, f"{classes[label]}/{number:05d}.png", label, pixels)

    return Source(kind=kind, classes=list(classes), images=images)


def _made_image(split: str, name: str, label: int, pixels: np.ndarray) -> SourceImage:
    data = encode_png(pixels)
    return SourceImage(split=split, name=name, label=label, num_bytes=len(data), data=data)


def _digit(values: np.ndarray) -> np.ndarray:
    """``(32, 32)`` uint8, upscaled from ``(8, 8)`` float of 0 to 16."""
    grey = np.rint(values * (255 / 16)).astype(np.uint8)
    return np.asarray(Image.fromarray(grey).resize((DIGITS_SIZE, DIGITS_SIZE), Image.Resampling.BICUBIC))
