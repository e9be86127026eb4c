from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbd_fast.errors import InputError
from cbd_fast.shards.long_tail import LongTail
from cbd_fast.shards.sources.base import SourceImage
from cbd_fast.shards.writing.catalog import Catalog, open_catalog, plan_shards


def image(name, label=0, split="train", **fields):
    return SourceImage(**{"split": split, "name": name, "label": label, "num_bytes": 1, "data": b"x"} | fields)


def grid(num_classes, num_per_class, split="train"):
    return [image(f"{c}/{n}.png", c, split) for c in range(num_classes) for n in range(num_per_class)]


@pytest.fixture
def catalog(tmp_path):
    with closing(Catalog(tmp_path / "catalog.sqlite")) as opened:
        yield opened


def names(catalog, split="train"):
    return [p.name for p in catalog.images(split, range(10**6))]


def test_counts_and_splits(catalog):
    catalog.add([image("a", 1), image("b", 0), image("c", 1), image("a", 1, "test")], ["x", "y"])
    assert (len(catalog), catalog.splits) == (4, ["train", "test"])
    assert catalog.counts("train").tolist() == [1, 2]
    assert catalog.counts("test").tolist() == [0, 1]


def test_order_depends_on_seed_and_names_alone(tmp_path):
    def ordered(images, seed, file):
        with closing(Catalog(tmp_path / file)) as catalog:
            catalog.add(images, ["x"])
            catalog.order(seed)
            return names(catalog), catalog.digest()

    images = [image(f"{n}.jpg") for n in range(50)]
    first, digest = ordered(images, 1, "a")
    assert ordered(images[::-1], 1, "b") == (first, digest)
    assert ordered(images, 2, "c")[0] != first
    assert sorted(first) == sorted(p.name for p in images)
    fewer, other = ordered(images[1:], 1, "d")
    assert fewer == [name for name in first if name != "0.jpg"]  # none of the others moved
    assert other != digest


def test_everything_about_an_image_comes_back(tmp_path):
    odd = "line\nbreak, ünïcode \udce9.jpg"
    there = [
        image(odd, path="/some/\udcffwhere", offset=2**40, data=None, num_bytes=None),
        image("b", metadata='{"a": 1}'),
    ]
    with closing(Catalog(tmp_path / "catalog.sqlite")) as catalog:
        catalog.add(there, ["x"])
        catalog.order(0)
    with open_catalog(tmp_path / "catalog.sqlite") as again:
        assert sorted(again.images("train", range(9)), key=lambda p: p.name) == sorted(there, key=lambda p: p.name)
        assert [p.name for p in again.images("train", range(1, 2))] == [list(again.images("train", range(2)))[1].name]
        assert list(again.missing()) == [("train", 0, odd)]


def test_texts_as_labels(tmp_path):
    for number, (labels, classes, counts) in enumerate(
        [
            (["2", "0", "1", "2", "007"], [str(n) for n in range(8)], None),
            (["2", "0", "1", "2"], ["0", "1", "2"], [1, 1, 2]),
            (["cat", "1e3", "ant", "cat"], ["1e3", "ant", "cat"], [1, 1, 2]),
        ]
    ):
        with closing(Catalog(tmp_path / str(number))) as catalog:
            images = [image(str(n), label) for n, label in enumerate(labels)]
            if counts is None:
                with pytest.raises(InputError, match="4 of 8 classes have no training images, such as '3'"):
                    catalog.add(images, None)
            else:
                catalog.add(images, None)
                assert catalog.counts("train").tolist() == counts
            assert catalog.classes == classes


def test_what_is_wrong_with_a_listing_is_said(tmp_path, catalog):
    with pytest.raises(InputError, match="listed twice, such as 'a' in train"):
        catalog.add([image("a"), image("a"), image("a", split="test")], ["x"])
    with closing(Catalog(tmp_path / "other")) as other, pytest.raises(InputError, match="number the labels from 0"):
        other.add([image("a", 1), image("b", 0, "test")], ["x", "y"])


def test_long_tail_and_validation(tmp_path, catalog):
    catalog.add(grid(4, 20) + grid(4, 3, "test"), list("abcd"))
    before = {p.name for p in grid(4, 20)}
    notes = catalog.keep_long_tail(LongTail(imbalance=20, num_val_per_class=5), seed=3)
    assert catalog.counts("train").tolist() == [20, 7, 2, 1]
    assert catalog.counts("val").tolist() == [0, 5, 5, 5]
    assert catalog.counts("test").tolist() == [3, 3, 3, 3]
    assert "1 classes keep too many for training and have fewer, such as 'a' 0" in notes[0]
    catalog.order(0)
    train, val = set(names(catalog)), set(names(catalog, "val"))
    assert not train & val
    assert train | val <= before
    with closing(Catalog(tmp_path / "again")) as again:  # the tail does not depend on the validation split
        again.add(grid(4, 20)[::-1], list("abcd"))
        assert again.keep_long_tail(LongTail(imbalance=20), seed=3) == []
        again.order(0)
        assert set(names(again)) == train


def test_long_tails_that_cannot_be_made(tmp_path):
    for number, (tail, message) in enumerate(
        [
            (LongTail(imbalance=21), "--imbalance 21 leaves no image of the smallest class .* use at most 20"),
            (LongTail(imbalance=2, num_val_per_class=11), "leaves fewer images of every class"),
            (LongTail(imbalance=1, num_val_per_class=1), "leaves fewer images of every class"),
        ]
    ):
        with closing(Catalog(tmp_path / str(number))) as catalog:
            catalog.add(grid(4, 20), list("abcd"))
            with pytest.raises(InputError, match=message):
                catalog.keep_long_tail(tail, 0)
    with closing(Catalog(tmp_path / "val")) as catalog:
        catalog.add(grid(2, 20) + grid(2, 1, "val"), list("ab"))
        with pytest.raises(InputError, match="there is one already"):
            catalog.keep_long_tail(LongTail(imbalance=2, num_val_per_class=1), 0)


@given(st.integers(1, 12), st.integers(1, 12), st.floats(1, 12), st.integers(0, 5))
def test_a_tail_keeps_what_was_asked_for(tmp_path_factory, num_classes, num_per_class, imbalance, seed):
    tail = LongTail(imbalance=imbalance)
    counts = tail.counts(num_per_class, num_classes)
    with closing(Catalog(tmp_path_factory.mktemp("tail") / "catalog")) as catalog:
        catalog.add(grid(num_classes, num_per_class), [str(c) for c in range(num_classes)])
        if min(counts) < 1:
            with pytest.raises(InputError, match="leaves no image"):
                catalog.keep_long_tail(tail, seed)
        else:
            catalog.keep_long_tail(tail, seed)
            assert catalog.counts("train").tolist() == counts


def test_order_by_offset(catalog):
    at = [("b.tar", 0), ("a.tar", 900), ("a.tar", 30), ("b.tar", 7)]
    catalog.add([image(str(n), path=path, offset=o, data=None) for n, (path, o) in enumerate(at)], ["x"])
    catalog.order_by_offset()
    assert names(catalog) == ["2", "1", "0", "3"]
    assert catalog.files("train") == [("a.tar", 2), ("b.tar", 2)]


def test_shards_end_at_either_limit():
    runs = plan_shards([5, 5, 1, 20, 1, 1, 1, 1], max_bytes=10, max_images=3)
    assert [list(run) for run in runs] == [[0, 1], [2], [3], [4, 5, 6], [7]]
    assert plan_shards([], 10, 3) == [range(0)]
