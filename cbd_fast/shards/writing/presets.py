"""What is published of each dataset, to check that it is that dataset and all of it."""

from dataclasses import dataclass

import numpy as np

from cbd_fast.errors import InputError
from cbd_fast.shards.long_tail import LongTail
from cbd_fast.shards.writing.catalog import Catalog


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Published facts of a dataset.

    Attributes:
        sources: layouts that it comes in.
        num_classes: classes of the training split.
        splits: images per split; a published split may be left out, but not the one for training.
        largest: training images of the largest class; None where it is not published.
        smallest: training images of the smallest class; None where it is not published.
        origin: who published the dataset.
        causes: why what people have is often something else.
        imbalance: imbalance of the exponential long tail that makes the dataset out of a balanced set; None where
            nothing is to be left out.
    """

    sources: tuple[str, ...]
    num_classes: int
    splits: dict[str, int]
    largest: int | None = None
    smallest: int | None = None
    origin: str
    causes: str
    imbalance: float | None = None


_FILE_SOURCES = ("list", "folder", "webdataset")
_LIU = "Liu et al., CVPR 2019"
_CUI = "Cui et al., CVPR 2019"


def _inaturalist(
    year: int, num_classes: int, train: int, test: int, largest: int | None = None, smallest: int | None = None
) -> Preset:
    return Preset(
        sources=("inaturalist", *_FILE_SOURCES),
        num_classes=num_classes,
        splits={"train": train, "test": test},
        largest=largest,
        smallest=smallest,
        origin=f"iNaturalist {year} competition, visipedia/inat_comp",
        causes=f"annotations of another year than {year}, or an archive that was not unpacked to the end",
    )


def _cifar(num_classes: int, largest: int, imbalance: float, train: int) -> Preset:
    return Preset(
        sources=(f"cifar{num_classes}", *_FILE_SOURCES),
        num_classes=num_classes,
        splits={"train": train, "test": 10_000},
        largest=largest,
        smallest=round(largest / imbalance),
        origin=f"{_CUI}; test split as it is",
        causes="a set that was made long-tailed before, or images missing from the folders",
        imbalance=imbalance,
    )


PRESETS = {
    "imagenet-lt": Preset(
        sources=_FILE_SOURCES,
        num_classes=1000,
        splits={"train": 115_846, "val": 20_000, "test": 50_000},
        largest=1280,
        smallest=5,
        origin=_LIU,
        causes="another year of ImageNet than 2012; lists of another long tail; val mixed up with test: the "
        "images of val are from ImageNet's train folder, those of test are ImageNet's val folder, in classes",
    ),
    "places-lt": Preset(
        sources=_FILE_SOURCES,
        num_classes=365,
        splits={"train": 62_500, "val": 7_300, "test": 36_500},
        largest=4980,
        smallest=5,
        origin=_LIU,
        causes="Places365-Challenge instead of Places365-Standard, or lists of another long tail",
    ),
    "inaturalist17": _inaturalist(2017, 5089, 579_184, 95_986),
    "inaturalist18": _inaturalist(2018, 8142, 437_513, 24_426, largest=1000, smallest=2),
    "inaturalist19": _inaturalist(2019, 1010, 265_213, 3_030),
    "inaturalist21": _inaturalist(2021, 10_000, 2_686_843, 100_000),
    "inaturalist21-mini": _inaturalist(2021, 10_000, 500_000, 100_000, largest=50, smallest=50),
    "tiny-imagenet": Preset(
        sources=("tiny-imagenet", *_FILE_SOURCES),
        num_classes=200,
        splits={"train": 100_000, "test": 10_000},
        largest=500,
        smallest=500,
        origin="Stanford CS231n, tiny-imagenet-200",
        causes="an archive that was not unpacked to the end",
    ),
    "cifar100-lt": _cifar(100, 500, 100, 10_847),
    "cifar100-lt-50": _cifar(100, 500, 50, 12_608),
    "cifar100-lt-10": _cifar(100, 500, 10, 19_573),
    "cifar10-lt": _cifar(10, 5000, 100, 12_406),
    "cifar10-lt-50": _cifar(10, 5000, 50, 13_996),
    "cifar10-lt-10": _cifar(10, 5000, 10, 20_431),
}


def find_preset(name: str, source: str, tail: LongTail | None) -> tuple[Preset, LongTail | None]:
    """The preset and the long tail that goes with it.

    Args:
        name: name of the preset.
        source: name of the layout that the dataset is in.
        tail: the long tail that is asked for, or None.

    Raises:
        InputError: the dataset does not come in that layout, or with another long tail than the one asked for.
    """
    preset = PRESETS[name]
    if source not in preset.sources:
        raise InputError(f"--preset {name}: comes as {', '.join(preset.sources)}, not as {source}")
    if preset.imbalance is None:
        if tail is not None:
            raise InputError(f"--preset {name}: is published as it is, without --imbalance; leave one of the two out")
        return preset, None
    if tail is None:
        return preset, LongTail(imbalance=preset.imbalance)
    if (tail.imbalance, tail.kind) != (preset.imbalance, "exp"):
        raise InputError(
            f"--preset {name}: is published with --imbalance {preset.imbalance:g} --imbalance-kind exp, not "
            f"{tail.imbalance:g} and {tail.kind}"
        )
    return preset, tail


def check_preset(name: str, catalog: Catalog, num_val_per_class: int = 0) -> list[str]:
    """Compares the images of a catalog with what is published.

    Args:
        name: name of the preset.
        catalog: the images.
        num_val_per_class: images per class of a validation split that the long tail made, which nobody published.

    Returns:
        Notes on published splits that are not there.

    Raises:
        InputError: something differs; the message has both numbers and the usual causes.
    """
    preset, num_images = PRESETS[name], {}
    train = catalog.counts("train")
    facts: list[tuple[str, int | None, int]] = [
        ("classes", preset.num_classes, len(train)),
        ("images of the largest training class", preset.largest, int(train.max())),
        ("images of the smallest training class", preset.smallest, int(train.min())),
    ]
    for split in catalog.splits:
        num_images[split] = int(np.sum(catalog.counts(split)))
        if split in preset.splits:
            facts.append((f"{split} images", preset.splits[split], num_images[split]))
    wrong = [f"{what}: {there:,}, published {known:,}" for what, known, there in facts if known not in (None, there)]
    unknown = [
        split for split in num_images if split not in preset.splits and not (split == "val" and num_val_per_class)
    ]
    wrong += [f"a split {split} of {num_images[split]:,} images, published none" for split in unknown]
    if wrong:
        raise InputError(
            f"this is not {name} as published ({preset.origin}): {'; '.join(wrong)}. Usual causes: {preset.causes}"
        )
    absent = {split: number for split, number in preset.splits.items() if split not in num_images}
    return [f"{split}: not given; {name} is published with {number:,} images" for split, number in absent.items()]
