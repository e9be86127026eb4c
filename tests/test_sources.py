import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbd_fast.errors import InputError
from cbd_fast.sharding.sources import (
    SourcePicture,
    chosen_order,
    digits_source,
    folder_source,
    long_tail_counts,
    with_long_tail,
)


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def names(pictures):
    return sorted(picture.name for picture in pictures)


@pytest.mark.parametrize(
    ("num_largest", "num_classes", "imbalance", "total"),
    [(500, 100, 100, 10_847), (500, 100, 50, 12_608), (500, 100, 10, 19_573), (5000, 10, 100, 12_406)],
)
def test_long_tails_have_the_published_sizes(num_largest, num_classes, imbalance, total):
    counts = long_tail_counts(num_largest, num_classes, imbalance)
    assert sum(counts) == total
    assert (counts[0], counts[-1]) == (num_largest, num_largest / imbalance)


def test_long_tail_of_the_digits():
    assert long_tail_counts(124, 10, 100) == [124, 74, 44, 26, 16, 9, 5, 3, 2, 1]


def test_folder_lists_every_visible_file_below_each_class(tmp_path):
    train, test = tmp_path / "train", tmp_path / "test"
    touch(train / "b" / "1.jpg", train / "a" / "deep" / "2.png", train / "a" / "1.jpg", train / "a" / ".hidden")
    touch(test / "b" / "x.jpg")
    source = folder_source({"train": train, "test": test})
    assert source.classes == ["a", "b"]
    assert [(p.name, p.label) for p in source.splits["train"]] == [("a/1.jpg", 0), ("a/deep/2.png", 0), ("b/1.jpg", 1)]
    assert [(p.name, p.label) for p in source.splits["test"]] == [("b/x.jpg", 1)]


def test_odd_names_and_dangling_links_are_listed(tmp_path):
    odd = ["spaced name.jpg", "line\nbreak.jpg", "ünïcode.jpg", "many.dots.in.it.jpg", "noextension"]
    touch(*(tmp_path / "train" / "a" / name for name in odd))
    os.symlink(tmp_path / "nowhere", tmp_path / "train" / "a" / "link.jpg")
    source = folder_source({"train": tmp_path / "train"})
    assert names(source.splits["train"]) == sorted(f"a/{name}" for name in [*odd, "link.jpg"])


def test_links_that_go_in_circles_are_followed_once(tmp_path):
    touch(tmp_path / "train" / "a" / "1.jpg", tmp_path / "train" / "a" / "b" / "2.jpg")
    touch(tmp_path / "train" / "c" / "3.jpg")
    os.symlink(tmp_path / "train" / "a", tmp_path / "train" / "a" / "b" / "again")
    os.symlink(tmp_path / "train", tmp_path / "train" / "a" / "b" / "up")  # to the other classes
    source = folder_source({"train": tmp_path / "train"})
    assert names(source.splits["train"]) == ["a/1.jpg", "a/b/2.jpg", "c/3.jpg"]


def test_class_names_that_cannot_be_written_are_refused(tmp_path):
    touch(tmp_path / "train" / os.fsdecode(b"caf\xe9") / "1.jpg")
    with pytest.raises(InputError, match="no printable UTF-8 name; rename it"):
        folder_source({"train": tmp_path / "train"})


def test_bad_folders_are_refused(tmp_path):
    train, test = tmp_path / "train", tmp_path / "test"
    with pytest.raises(InputError, match="no such folder"):
        folder_source({"train": train})
    train.mkdir()
    with pytest.raises(InputError, match="no class folders"):
        folder_source({"train": train})
    touch(train / "a" / "1.jpg")
    (train / "b").mkdir()
    with pytest.raises(InputError, match="1 classes without pictures, such as 'b'"):
        folder_source({"train": train})
    touch(train / "b" / "1.jpg", test / "c" / "1.jpg")
    with pytest.raises(InputError, match=r"1 classes that .*train lacks, such as 'c'"):
        folder_source({"train": train, "test": test})
    (test / "c" / "1.jpg").unlink()
    (test / "c").rename(test / "a")
    with pytest.raises(InputError, match="hold no files"):
        folder_source({"train": train, "test": test})


def test_choice_depends_on_seed_and_names_alone():
    pictures = [SourcePicture(name=f"{n}.jpg", label=0, content=b"", num_bytes=0) for n in range(50)]
    assert chosen_order(pictures, 1) == chosen_order(pictures[::-1], 1)
    assert chosen_order(pictures, 1) != chosen_order(pictures, 2)
    # removing a picture moves none of the others
    assert chosen_order(pictures[1:], 1) == [p for p in chosen_order(pictures, 1) if p.name != "0.jpg"]


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 4), st.integers(0, 5))
def test_long_tail_keeps_a_part_of_each_class(imbalance, seed):
    source = digits_source(0)
    kept = with_long_tail(source, imbalance, seed, num_largest=8)
    assert set(names(kept.splits["train"])) <= set(names(source.splits["train"]))
    assert kept.splits["test"] == source.splits["test"]


def test_a_tail_that_would_lose_a_class_is_refused():
    with pytest.raises(InputError, match="use at most 5"):
        with_long_tail(digits_source(0), 100, 0, num_largest=5)


def test_digits():
    source = digits_source(3)
    train, test = source.splits["train"], source.splits["test"]
    assert [sum(p.label == c for p in train) for c in range(10)] == [124, 74, 44, 26, 16, 9, 5, 3, 2, 1]
    assert [sum(p.label == c for p in test) for c in range(10)] == [50] * 10
    assert not set(names(train)) & set(names(test))
    assert names(digits_source(4).splits["test"]) != names(test)
