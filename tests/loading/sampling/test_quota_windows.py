from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbd_fast.loading.counter_rng import permute
from cbd_fast.loading.sampling import quota_windows as module
from cbd_fast.loading.sampling.quota_windows import plan_windows


def drawn_one_by_one(before, seed):
    """Class and visit of every draw, by making each window's permutation and counting."""
    classes, visits = [], []
    for window, (start, end) in enumerate(pairwise(before)):
        tickets = np.repeat(np.arange(len(start)), end - start)
        count = start.copy()
        for label in tickets[permute(np.arange(len(tickets)), len(tickets), seed, window)]:
            classes.append(int(label))
            visits.append(int(count[label]))
            count[label] += 1
    return classes, visits


@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 30), st.integers(0, 2**62), st.integers(1, 40))
def test_windows_are_those_of_counting(num_windows, num_classes, window, seed, block_size):
    rng = np.random.default_rng(seed)
    quotas = rng.multinomial(window, np.full(num_classes, 1 / num_classes), num_windows)
    before = np.concatenate([rng.integers(0, 99, (1, num_classes)), quotas]).cumsum(axis=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK_SIZE", block_size)
        planned = plan_windows(before, lambda windows: (seed, windows))
    classes, visits = planned(np.arange(num_windows * window))
    assert (classes.tolist(), visits.tolist()) == drawn_one_by_one(before, seed)


def test_draws_take_little_memory():
    planned = plan_windows(np.array([[0, 0], [60_000, 7]]), lambda windows: (0, windows))
    assert planned.draws.itemsize == 3  # a byte for the class, two for the rank
