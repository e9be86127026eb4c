import pytest

from cbd_fast.shards.long_tail import LongTail, choice_key, exponential_counts, order_key, step_counts


@pytest.mark.parametrize(
    ("num_largest", "num_classes", "imbalance", "total"),
    [
        (500, 100, 100, 10_847),
        (500, 100, 50, 12_608),
        (500, 100, 10, 19_573),
        (5000, 10, 100, 12_406),
        (5000, 10, 50, 13_996),
        (5000, 10, 10, 20_431),
    ],
)
def test_exponential_tails_have_the_published_sizes(num_largest, num_classes, imbalance, total):
    counts = exponential_counts(num_largest, num_classes, imbalance)
    assert sum(counts) == total
    assert (counts[0], counts[-1]) == (num_largest, num_largest / imbalance)


def test_tail_of_the_digits():
    assert exponential_counts(124, 10, 100) == [124, 74, 44, 26, 16, 9, 5, 3, 2, 1]


def test_step_has_two_halves():
    assert step_counts(500, 4, 100) == [500, 500, 5, 5]
    assert step_counts(7, 5, 2) == [7, 7, 3, 3, 3]
    assert LongTail(imbalance=100, kind="step").counts(500, 4) == [500, 500, 5, 5]
    assert LongTail(imbalance=100).counts(500, 4) == [500, 107, 23, 5]


def test_keys_depend_on_purpose_seed_and_name():
    keys = {order_key(purpose, seed, name) for purpose in "ab" for seed in (0, 1) for name in (b"x", b"y")}
    assert len(keys) == 8
    assert choice_key(3, "a/1.jpg") == (order_key("choose", 3, b"a/1.jpg"), "a/1.jpg")
