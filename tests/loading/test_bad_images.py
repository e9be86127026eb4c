import numpy as np
import pytest

from cbd_fast.errors import RunError
from cbd_fast.loading.bad_images import BadImages
from cbd_fast.shards.reader import ShardReader


@pytest.fixture
def shards(photo_shards):
    """Classes of 12, 5 and 2 images: indices 0 to 11, 12 to 16, 17 and 18."""
    return ShardReader(photo_shards, "train")


def test_the_next_of_the_class_comes_instead(shards):
    bad = BadImages(shards, 1.0, None)
    bad.remember({0: "cut off", 16: "empty", 12: "empty"})
    assert bad.replaced(np.array([0, 1, 11, 16, 12, 17])).tolist() == [1, 1, 11, 13, 13, 17]
    assert bad.are_in(np.array([0, 1, 16])).tolist() == [True, False, True]


def test_each_is_reported_once(shards):
    reported = []
    bad = BadImages(shards, 1.0, lambda name, reason: reported.append((name, reason)))
    bad.remember({3: "cut off"})
    bad.remember({3: "cut off", 4: "empty"})
    assert reported == [(shards.name(3), "cut off"), (shards.name(4), "empty")]


def test_one_alone_is_never_too_many(shards):
    bad = BadImages(shards, 0.0, None)
    bad.remember({3: "cut off"})
    with pytest.raises(RunError, match=r"2 of 19 images cannot be decoded, .*\(1\); the first: train-.*cut off"):
        bad.remember({4: "empty"})


def test_a_class_without_good_images_ends_the_run(shards):
    bad = BadImages(shards, 1.0, None)
    bad.remember({17: "empty", 18: "empty"})
    with pytest.raises(RunError, match="no image of class 'cat' can be decoded"):
        bad.replaced(np.array([17]))
