from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbd_fast.loading.counter_rng import hash64, inverse_permute, permute, uniform


def test_the_hash_never_changes():
    # orders of images in published results depend on it
    assert hash64(0).tolist() == [3220344897584144929]
    assert hash64(1, 2, 3).tolist() == [3671048590361019180]
    assert permute(np.arange(8), 8, 0).tolist() == [2, 5, 3, 0, 1, 6, 4, 7]
    far = np.array([0, 5, 2**40])
    assert permute(far, 2**40 + 1, 3, np.array([1, 1, 9])).tolist() == [936720979608, 276258239796, 793746261051]


def test_keys_are_ordered_and_distinct():
    hashes = {int(hash64(*keys)[0]) for keys in [(0,), (1,), (0, 0), (0, 1), (1, 0), (-1,), (2**63 - 1,)]}
    assert len(hashes) == 7


def test_keys_broadcast():
    table = hash64(5, np.arange(3)[:, None], np.arange(4))
    assert table.shape == (3, 4)
    assert table[2, 3] == hash64(5, 2, 3)[0]


def test_uniform_fills_the_unit_interval():
    values = uniform(7, np.arange(100_000))
    assert values.min() >= 0
    assert values.max() < 1
    histogram, _ = np.histogram(values, 20, (0, 1))
    assert np.abs(histogram - 5000).max() < 5 * np.sqrt(5000)


@given(st.integers(1, 300), st.integers(0, 2**62), st.integers(0, 100))
def test_permute_is_a_permutation(length, seed, purpose):
    assert sorted(permute(np.arange(length), length, seed, purpose).tolist()) == list(range(length))


@given(st.integers(1, 10**9), st.integers(0, 2**62), st.data())
def test_elements_of_a_permutation_are_computed_one_by_one(length, seed, data):
    positions = np.array(data.draw(st.lists(st.integers(0, length - 1), min_size=1, max_size=5)))
    together = permute(positions, length, seed)
    assert together.tolist() == [int(permute(position, length, seed)[0]) for position in positions]
    assert ((together >= 0) & (together < length)).all()


@given(st.integers(1, 10**12), st.integers(0, 2**62), st.data())
def test_inverse_permute_finds_the_positions(length, seed, data):
    positions = np.array(data.draw(st.lists(st.integers(0, length - 1), min_size=1, max_size=5)))
    keys = np.arange(len(positions)) // 2
    assert inverse_permute(permute(positions, length, seed, keys), length, seed, keys).tolist() == positions.tolist()


def test_equal_keys_are_one_key():
    # they are treated apart, which is for speed alone
    keys = np.array([4, 4, 4, 4, 5])
    mixed = permute(np.arange(5), 9, 1, keys)
    assert (
        permute(np.arange(4), 9, 1, keys[:4]).tolist() == mixed[:4].tolist() == permute(np.arange(4), 9, 1, 4).tolist()
    )


def test_lengths_and_keys_may_differ_from_element_to_element():
    lengths, keys = np.array([3, 5, 5]), np.array([1, 1, 2])
    together = permute(np.array([2, 4, 4]), lengths, keys)
    assert together.tolist() == [int(permute(p, n, k)[0]) for p, n, k in zip([2, 4, 4], lengths, keys, strict=True)]


@pytest.mark.parametrize("length", [2, 3, 4])
def test_all_permutations_are_equally_likely(length):
    num_keys = 24_000
    keys = np.arange(num_keys)[:, None]
    counts = Counter(map(tuple, permute(np.arange(length), length, keys).tolist()))
    num_permutations = [1, 1, 2, 6, 24][length]
    assert len(counts) == num_permutations
    expected = num_keys / num_permutations
    chi_squared = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_squared < {1: 12, 5: 22, 23: 52}[num_permutations - 1]  # exceeded once in 2000


def test_neighbours_go_their_own_ways():
    # where 0 and 1 of a permutation of 20 go: all 380 pairs of positions equally often
    positions = permute(np.arange(2), 20, np.arange(76_000)[:, None])
    counts = np.bincount(positions[:, 0] * 20 + positions[:, 1], minlength=400).reshape(20, 20)
    assert counts.diagonal().sum() == 0
    off_diagonal = counts[~np.eye(20, dtype=bool)]
    assert ((off_diagonal - 200) ** 2 / 200).sum() < 475  # 379 degrees of freedom, exceeded once in 2000
