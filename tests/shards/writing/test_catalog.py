from contextlib import closing

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbd_fast.errors import InputError
from cbd_fast.shards.long_tail import LongTail
from cbd_fast.shards.sources.base import SourcePicture
from cbd_fast.shards.writing.catalog import Listing, plan_shards, read_listing


def picture(name, label=0, split="train", **fields):
    return SourcePicture(**{"split": split, "name": name, "label": label, "num_bytes": 1, "data": b"x"} | fields)


def grid(num_classes, num_per_class, split="train"):
    return [picture(f"{c}/{n}.png", c, split) for c in range(num_classes) for n in range(num_per_class)]


@pytest.fixture
def listing(tmp_path):
    with closing(Listing(tmp_path / "listing.sqlite")) as opened:
        yield opened


def names(listing, split="train"):
    return [p.name for p in listing.pictures(split, range(10**6))]


def test_counts_and_splits(listing):
    listing.add([picture("a", 1), picture("b", 0), picture("c", 1), picture("a", 1, "test")], ["x", "y"])
    assert (len(listing), listing.splits) == (4, ["train", "test"])
    assert listing.counts("train").tolist() == [1, 2]
    assert listing.counts("test").tolist() == [0, 1]


def test_order_depends_on_seed_and_names_alone(tmp_path):
    def ordered(pictures, seed, file):
        with closing(Listing(tmp_path / file)) as listing:
            listing.add(pictures, ["x"])
            listing.order(seed)
            return names(listing), listing.digest()

    pictures = [picture(f"{n}.jpg") for n in range(50)]
    first, digest = ordered(pictures, 1, "a")
    assert ordered(pictures[::-1], 1, "b") == (first, digest)
    assert ordered(pictures, 2, "c")[0] != first
    assert sorted(first) == sorted(p.name for p in pictures)
    fewer, other = ordered(pictures[1:], 1, "d")
    assert fewer == [name for name in first if name != "0.jpg"]  # none of the others moved
    assert other != digest


def test_everything_about_a_picture_comes_back(tmp_path):
    odd = "line\nbreak, ünïcode \udce9.jpg"
    there = [
        picture(odd, path="/some/\udcffwhere", offset=2**40, data=None, num_bytes=None),
        picture("b", facts='{"a": 1}'),
    ]
    with closing(Listing(tmp_path / "listing.sqlite")) as listing:
        listing.add(there, ["x"])
        listing.order(0)
    with read_listing(tmp_path / "listing.sqlite") as again:
        assert sorted(again.pictures("train", range(9)), key=lambda p: p.name) == sorted(there, key=lambda p: p.name)
        assert [p.name for p in again.pictures("train", range(1, 2))] == [
            list(again.pictures("train", range(2)))[1].name
        ]
        assert list(again.missing()) == [("train", 0, odd)]


def test_texts_as_labels(tmp_path):
    for number, (labels, classes, counts) in enumerate(
        [
            (["2", "0", "1", "2", "007"], [str(n) for n in range(8)], None),
            (["2", "0", "1", "2"], ["0", "1", "2"], [1, 1, 2]),
            (["cat", "1e3", "ant", "cat"], ["1e3", "ant", "cat"], [1, 1, 2]),
        ]
    ):
        with closing(Listing(tmp_path / str(number))) as listing:
            pictures = [picture(str(n), label) for n, label in enumerate(labels)]
            if counts is None:
                with pytest.raises(InputError, match="4 of 8 classes have no training pictures, such as '3'"):
                    listing.add(pictures, None)
            else:
                listing.add(pictures, None)
                assert listing.counts("train").tolist() == counts
            assert listing.classes == classes


def test_what_is_wrong_with_a_listing_is_said(tmp_path, listing):
    with pytest.raises(InputError, match="listed twice, such as 'a' in train"):
        listing.add([picture("a"), picture("a"), picture("a", split="test")], ["x"])
    with closing(Listing(tmp_path / "other")) as other, pytest.raises(InputError, match="number the labels from 0"):
        other.add([picture("a", 1), picture("b", 0, "test")], ["x", "y"])


def test_long_tail_and_validation(tmp_path, listing):
    listing.add(grid(4, 20) + grid(4, 3, "test"), list("abcd"))
    before = {p.name for p in grid(4, 20)}
    notes = listing.keep_long_tail(LongTail(imbalance=20, num_val_per_class=5), seed=3)
    assert listing.counts("train").tolist() == [20, 7, 2, 1]
    assert listing.counts("val").tolist() == [0, 5, 5, 5]
    assert listing.counts("test").tolist() == [3, 3, 3, 3]
    assert "1 classes keep too many for training and have fewer, such as 'a' 0" in notes[0]
    listing.order(0)
    train, val = set(names(listing)), set(names(listing, "val"))
    assert not train & val
    assert train | val <= before
    with closing(Listing(tmp_path / "again")) as again:  # the tail does not depend on the validation split
        again.add(grid(4, 20)[::-1], list("abcd"))
        assert again.keep_long_tail(LongTail(imbalance=20), seed=3) == []
        again.order(0)
        assert set(names(again)) == train


def test_long_tails_that_cannot_be_made(tmp_path):
    for number, (tail, message) in enumerate(
        [
            (LongTail(imbalance=21), "--imbalance 21 leaves no picture of the smallest class .* use at most 20"),
            (LongTail(imbalance=2, num_val_per_class=11), "leaves fewer pictures of every class"),
            (LongTail(imbalance=1, num_val_per_class=1), "leaves fewer pictures of every class"),
        ]
    ):
        with closing(Listing(tmp_path / str(number))) as listing:
            listing.add(grid(4, 20), list("abcd"))
            with pytest.raises(InputError, match=message):
                listing.keep_long_tail(tail, 0)
    with closing(Listing(tmp_path / "val")) as listing:
        listing.add(grid(2, 20) + grid(2, 1, "val"), list("ab"))
        with pytest.raises(InputError, match="there is one already"):
            listing.keep_long_tail(LongTail(imbalance=2, num_val_per_class=1), 0)


@given(st.integers(1, 12), st.integers(1, 12), st.floats(1, 12), st.integers(0, 5))
def test_a_tail_keeps_what_was_asked_for(tmp_path_factory, num_classes, num_per_class, imbalance, seed):
    tail = LongTail(imbalance=imbalance)
    counts = tail.counts(num_per_class, num_classes)
    with closing(Listing(tmp_path_factory.mktemp("tail") / "listing")) as listing:
        listing.add(grid(num_classes, num_per_class), [str(c) for c in range(num_classes)])
        if min(counts) < 1:
            with pytest.raises(InputError, match="leaves no picture"):
                listing.keep_long_tail(tail, seed)
        else:
            listing.keep_long_tail(tail, seed)
            assert listing.counts("train").tolist() == counts


def test_order_by_place(listing):
    at = [("b.tar", 0), ("a.tar", 900), ("a.tar", 30), ("b.tar", 7)]
    listing.add([picture(str(n), path=path, offset=o, data=None) for n, (path, o) in enumerate(at)], ["x"])
    listing.order_by_place()
    assert names(listing) == ["2", "1", "0", "3"]
    assert listing.files("train") == [("a.tar", 2), ("b.tar", 2)]


def test_shards_end_at_either_limit():
    runs = plan_shards([5, 5, 1, 20, 1, 1, 1, 1], max_bytes=10, max_pictures=3)
    assert [list(run) for run in runs] == [[0, 1], [2], [3], [4, 5, 6], [7]]
    assert plan_shards([], 10, 3) == [range(0)]


def test_reading_a_part_of_a_file(tmp_path):
    path = tmp_path / "some.tar"
    path.write_bytes(bytes(range(100)))
    part = picture("a", path=str(path), offset=10, num_bytes=5, data=None)
    assert part.read() == bytes(range(10, 15))
    with pytest.raises(OSError, match="ends too early"):
        picture("a", path=str(path), offset=98, num_bytes=5, data=None).read()
    with pytest.raises(OSError, match="not a regular file"):
        picture("a", path=str(tmp_path), data=None).read()
    with pytest.raises(FileNotFoundError):
        picture("a", path=str(tmp_path / "none"), data=None).read()
    assert np.frombuffer(picture("a").read(), np.uint8).tolist() == [120]
