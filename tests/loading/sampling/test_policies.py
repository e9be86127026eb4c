import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbd_fast import Loader
from cbd_fast.errors import InputError
from cbd_fast.loading.cache.decoded_cache import image_bytes
from cbd_fast.loading.sampling import orders
from cbd_fast.loading.sampling.orders import QuotaOrder
from cbd_fast.loading.sampling.policies import draw_fractions, fixed_fractions, make_order
from cbd_fast.registry import SAMPLING

POLICIES = tuple(SAMPLING)
COUNTS = st.lists(st.integers(0, 12), min_size=1, max_size=8).filter(any)
SEEDS = st.integers(0, 2**62)


def starts_of(counts) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def labels_of(indices, counts) -> np.ndarray:
    return np.searchsorted(starts_of(counts), indices, side="right") - 1


def order_of(policy, counts, seed=0, num_draws=500):
    return make_order(policy, starts_of(counts), seed, num_draws)


def test_orders_never_change():
    # published results depend on them; the crc32 of draws that begin in one window, round or epoch and end in another
    counts = [*range(300, 0, -3), 0, 1]
    checksums = {
        policy: zlib.crc32(order_of(policy, counts, 7, 10**6)(np.arange(10**5, 10**5 + 20_000)).astype("<i8").tobytes())
        for policy in POLICIES
    }
    assert checksums == {
        "instance": 1016454004,
        "class_balanced": 3351998915,
        "square_root": 1174719120,
        "progressive": 2555822624,
    }


@given(COUNTS, SEEDS, st.integers(0, 50))
def test_instance_epochs_hold_each_image_once(counts, seed, epoch):
    total = sum(counts)
    indices = order_of("instance", counts, seed)(np.arange(epoch * total, (epoch + 1) * total))
    assert sorted(indices.tolist()) == list(range(total))


@given(COUNTS, SEEDS, st.integers(0, 50))
def test_balanced_rounds_hold_each_class_once(counts, seed, number):
    present = np.flatnonzero(counts).tolist()
    draws = np.arange(number * len(present), (number + 1) * len(present))
    labels = labels_of(order_of("class_balanced", counts, seed)(draws), counts)
    assert sorted(labels.tolist()) == present


@settings(deadline=None)
@given(st.sampled_from(POLICIES), COUNTS, SEEDS)
def test_no_image_comes_again_before_the_others_of_its_class(policy, counts, seed):
    indices = order_of(policy, counts, seed)(np.arange(400))
    labels = labels_of(indices, counts)
    for label, count in enumerate(counts):
        of_class = indices[labels == label]
        for first in range(0, len(of_class), max(count, 1)):
            cycle = of_class[first : first + count].tolist()
            assert len(set(cycle)) == len(cycle)


@settings(deadline=None)
@given(st.sampled_from(POLICIES), COUNTS, SEEDS, st.data())
def test_draws_do_not_depend_on_each_other(policy, counts, seed, data):
    """Any draws, asked for in any company, by a fresh order: the image is a function of the draw's number."""
    draws = np.array(data.draw(st.lists(st.integers(0, 10**6), min_size=1, max_size=6)))
    together = order_of(policy, counts, seed)(draws)
    fresh = [int(order_of(policy, counts, seed)(np.array([draw]))[0]) for draw in draws]
    assert together.tolist() == fresh


@settings(deadline=None)
@given(st.sampled_from(POLICIES), COUNTS, SEEDS, st.integers(1, 4), st.integers(0, 200))
def test_processes_share_the_same_global_batch(policy, counts, seed, world_size, step):
    batch = 4 * 3 * world_size
    draws = np.arange(step * batch, (step + 1) * batch)
    whole = order_of(policy, counts, seed)(draws)
    parts = [order_of(policy, counts, seed)(part) for part in np.split(draws, world_size)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@settings(deadline=None)
@given(st.sampled_from(["square_root", "progressive"]), COUNTS, SEEDS, st.integers(0, 20))
def test_quotas_are_exact_after_every_window(policy, counts, seed, number):
    order = order_of(policy, counts, seed)
    assert isinstance(order, QuotaOrder)
    drawn = sum((order.quotas(window) for window in range(number)), np.zeros(np.count_nonzero(counts), np.int64))
    exact = order.drawn_by(number * order.window)
    assert (np.abs(drawn - exact) < 1 + 1e-6).all()
    quotas = order.quotas(number)
    assert quotas.min() >= 0
    assert quotas.sum() == order.window
    # and the draws themselves keep to the quotas
    draws = np.arange(number * order.window, (number + 1) * order.window)
    labels = labels_of(order(draws), counts)
    np.testing.assert_array_equal(np.bincount(labels, minlength=len(counts))[np.flatnonzero(counts)], quotas)


def test_square_root_fractions_by_hand():
    # roots 3, 2, 1: of six draws three, two and one
    order = order_of("square_root", [9, 4, 1])
    assert order.window == 6
    assert order.quotas(0).tolist() == [3, 2, 1]
    assert order.quotas(1000).tolist() == [3, 2, 1]


def test_progressive_goes_from_instance_to_balanced():
    counts, num_draws = [90, 9, 1], 100_000
    order = order_of("progressive", counts, num_draws=num_draws)
    windows = [0, num_draws // order.window - 1, num_draws // order.window + 10]
    first, last, after = [order.quotas(number) / order.window for number in windows]
    np.testing.assert_allclose(first, [0.9, 0.09, 0.01], atol=0.02)
    np.testing.assert_allclose(last, [1 / 3] * 3, atol=0.02)
    np.testing.assert_allclose(after, [1 / 3] * 3, atol=0.02)
    # by hand: half way, (0.9 + 1/3) / 2 of the largest class
    half = order.quotas(num_draws // order.window // 2) / order.window
    np.testing.assert_allclose(half[0], (0.9 + 1 / 3) / 2, atol=0.02)


@pytest.mark.parametrize("policy", POLICIES)
def test_seeds_and_rounds_differ(policy):
    counts, draws = [40, 30, 20, 10], np.arange(200)
    first = order_of(policy, counts, seed=0)(draws)
    assert (first != order_of(policy, counts, seed=1)(draws)).any()
    assert (first[:100] != first[100:]).any()


def test_balanced_order_is_not_the_same_in_every_round():
    labels = labels_of(order_of("class_balanced", [5] * 6)(np.arange(6 * 100)), [5] * 6).reshape(100, 6)
    assert len({tuple(row) for row in labels.tolist()}) > 80


def test_far_draws_of_a_large_set():
    counts = np.full(21_841, 641)
    order = make_order("class_balanced", starts_of(counts), 0)
    indices = order(np.arange(10**12, 10**12 + 128))
    assert indices.min() >= 0
    assert indices.max() < counts.sum()


@pytest.mark.parametrize("policy", ["square_root", "progressive"])
def test_plans_that_are_forgotten_are_made_again(policy, monkeypatch):
    draws = np.random.default_rng(0).integers(0, 10**5, 300)
    expected = order_of(policy, [90, 9, 1])(draws)
    monkeypatch.setattr(orders, "MAX_DRAWS_KEPT", 0)
    monkeypatch.setattr(orders, "BLOCK_SIZE", 1)
    assert order_of(policy, [90, 9, 1])(draws).tolist() == expected.tolist()


def test_impossible_orders_are_refused():
    with pytest.raises(InputError, match="holds no images"):
        order_of("instance", [0, 0])
    with pytest.raises(InputError, match="needs the number of steps"):
        order_of("progressive", [3], num_draws=None)
    with pytest.raises(InputError, match="'random': must be one of instance"):
        order_of("random", [3])


def test_an_unknown_policy_is_refused_with_all_that_there_are():
    expected = "sampling='cube_root': must be one of instance, class_balanced, square_root, progressive, sequential"
    with pytest.raises(InputError, match=expected):
        order_of("cube_root", [3])


@pytest.mark.parametrize("policy", POLICIES)
def test_class_fractions_are_those_of_a_runs_draws(policy):
    counts, num_draws = [90, 0, 9, 1], 30_000
    order = order_of(policy, counts, num_draws=num_draws)
    drawn = np.bincount(labels_of(order(np.arange(num_draws)), counts), minlength=4) / num_draws
    assert order.class_fractions.shape == (4,)
    np.testing.assert_allclose(order.class_fractions, drawn, atol=0.003)
    assert order.class_fractions[1] == 0
    np.testing.assert_allclose(draw_fractions(policy, starts_of(counts)) * counts, order.class_fractions, atol=1e-12)


def test_a_sequential_order_is_that_of_the_index():
    order = order_of("sequential", [3, 0, 1])
    assert order(np.array([2, 0, 3])).tolist() == [2, 0, 3]
    assert order.class_fractions.tolist() == [0.75, 0, 0.25]


@pytest.fixture
def cube_root():
    """A policy of a user's own."""

    @SAMPLING.register("cube_root")
    def cube_root(starts, seed, num_draws):
        """Each class in proportion to the cube root of its images."""
        return fixed_fractions(starts, seed, np.cbrt(np.diff(starts)))

    yield "cube_root"
    del SAMPLING._entries["cube_root"]


def test_a_users_policy_has_exact_quotas(cube_root):
    counts = [27, 0, 8, 1]  # roots 3, 2, 1: of six draws three, two and one
    assert SAMPLING.describe()["cube_root"] == "Each class in proportion to the cube root of its images."
    labels = labels_of(order_of("cube_root", counts)(np.arange(600)), counts).reshape(100, 6)
    for window in labels:
        assert np.bincount(window, minlength=4).tolist() == [3, 0, 2, 1]
    np.testing.assert_allclose(draw_fractions("cube_root", starts_of(counts)), [1 / 54, 0, 1 / 24, 1 / 6])


@pytest.mark.parametrize("decoder", ["torch", "dali"])
def test_a_users_policy_works_in_a_loader_with_a_cache(photo_shards, cube_root, decoder):
    options = {"sampling": cube_root, "batch_size": 6, "image_size": 32, "device": "cpu", "decoder": decoder}
    with Loader(photo_shards, **options) as plain, Loader(photo_shards, cache=0.3, **options) as kept:
        for expected, batch in zip(plain.steps(0, 6), kept.steps(0, 6), strict=True):
            assert batch.ids.tolist() == expected.ids.tolist()
        # those are cached that serve the most draws per byte by the user's fractions
        entries, roots = kept.shards.index.entries, np.cbrt([12, 5, 2])
        value = (roots / roots.sum() / [12, 5, 2])[entries["label"]] / image_bytes(entries)
        is_cached = np.isin(np.arange(19), kept.cache.indices)
        assert is_cached.sum() == 5
        assert value[is_cached].min() >= value[~is_cached].max()
        assert kept.stats().num_cached > 0
        drawn = np.bincount(plain.shards.index.labels(plain._order(np.arange(3000))), minlength=3)
    np.testing.assert_allclose(drawn / 3000, roots / roots.sum(), atol=0.002)


@given(COUNTS, SEEDS, st.data())
def test_fixed_fractions_come_exactly(counts, seed, data):
    weights = st.integers(1, 9).flatmap(lambda most: st.integers(0, most))
    fractions = np.array([data.draw(weights) if count else 0 for count in counts], float)
    if not fractions.any():
        return
    order = fixed_fractions(starts_of(counts), seed, fractions)
    num_draws = 3 * order.window
    drawn = np.bincount(labels_of(order(np.arange(num_draws)), counts), minlength=len(counts))
    assert (np.abs(drawn - num_draws * fractions / fractions.sum()) < 1 + 1e-6).all()
    assert (drawn[fractions == 0] == 0).all()


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ([1, 1], r"shape \(2,\); must be \(3,\), one for each class"),
        ([1, -1, 0], "that of class 1 is -1; must be 0 or more, and finite"),
        ([1, np.nan, 0], "that of class 1 is nan; must be 0 or more, and finite"),
        ([1, 1, 0.5], "that of class 2 is 0.5; must be 0, as the class has no images"),
        ([0, 0, 0], "all are 0"),
        ([1, 1e-12, 0], "class 1 would get 1e-12 of them; must be 0, or at least once in 134,217,728"),
    ],
)
def test_impossible_fractions_are_refused(fractions, message):
    with pytest.raises(InputError, match=message):
        fixed_fractions(starts_of([3, 2, 0]), 0, fractions)
