from contextlib import closing

import pytest

from cbd_fast.errors import InputError
from cbd_fast.shards.long_tail import LongTail, exponential_counts
from cbd_fast.shards.sources.base import SourceImage
from cbd_fast.shards.writing import presets
from cbd_fast.shards.writing.catalog import Catalog
from cbd_fast.shards.writing.presets import PRESETS, Preset, check_preset, find_preset

SMALL = Preset(
    sources=("folder",),
    num_classes=2,
    splits={"train": 5, "test": 2},
    largest=4,
    smallest=1,
    origin="nobody",
    causes="a full moon",
)


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if preset.imbalance])
def test_long_tails_of_cifar_follow_the_formula(name):
    preset = PRESETS[name]
    counts = exponential_counts(50_000 // preset.num_classes, preset.num_classes, preset.imbalance)
    assert (sum(counts), counts[0], counts[-1]) == (preset.splits["train"], preset.largest, preset.smallest)


def test_presets_are_possible():
    for preset in PRESETS.values():
        if preset.largest is not None:
            train = preset.splits["train"]
            assert preset.smallest * preset.num_classes <= train <= preset.largest * preset.num_classes


def check(tmp_path, monkeypatch, counts, splits=("test", "test"), **options):
    monkeypatch.setitem(presets.PRESETS, "small", SMALL)
    images = [("train", label) for label, count in enumerate(counts) for _ in range(count)]
    images += [(split, 0) for split in splits]
    with closing(Catalog(tmp_path / "catalog")) as catalog:
        catalog.add(
            (
                SourceImage(split=split, name=str(n), label=label, num_bytes=0)
                for n, (split, label) in enumerate(images)
            ),
            [str(label) for label in range(len(counts))],
        )
        return check_preset("small", catalog, **options)


def test_what_is_published_passes(tmp_path, monkeypatch):
    assert check(tmp_path, monkeypatch, [4, 1]) == []
    notes = check(tmp_path, monkeypatch, [1, 4], splits=())  # a split may be left out
    assert notes == ["test: not given; small is published with 2 images"]
    check(tmp_path, monkeypatch, [4, 1], splits=("val",), num_val_per_class=1)  # made here, not published


@pytest.mark.parametrize(
    ("counts", "splits", "message"),
    [
        ([4, 2], ("test", "test"), "smallest training class: 2, published 1; train images: 6, published 5"),
        ([3, 2], ("test", "test"), "largest training class: 3, published 4"),
        ([3, 1, 1], ("test", "test"), "classes: 3, published 2"),
        ([4, 1], ("test",), "test images: 1, published 2. Usual causes: a full moon"),
        ([4, 1], ("val",), "a split val of 1 images, published none"),
    ],
)
def test_what_is_not_published_is_said(tmp_path, monkeypatch, counts, splits, message):
    with pytest.raises(InputError, match=message):
        check(tmp_path, monkeypatch, counts, splits)


def test_a_preset_brings_its_long_tail():
    assert find_preset("cifar100-lt-50", "cifar100", None)[1] == LongTail(imbalance=50)
    assert find_preset("imagenet-lt", "list", None)[1] is None
    tail = LongTail(imbalance=100, num_val_per_class=3)
    assert find_preset("cifar100-lt", "folder", tail)[1] == tail
    with pytest.raises(InputError, match="comes as list, folder, webdataset, not as digits"):
        find_preset("imagenet-lt", "digits", None)
    with pytest.raises(InputError, match="published as it is, without --imbalance"):
        find_preset("imagenet-lt", "list", tail)
    with pytest.raises(InputError, match="--imbalance 100 --imbalance-kind exp, not 100 and step"):
        find_preset("cifar100-lt", "cifar100", LongTail(imbalance=100, kind="step"))
