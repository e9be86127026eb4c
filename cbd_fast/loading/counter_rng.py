"""Randomness without state: hashes of counters, and permutations whose elements are computed one by one.

Whatever is random here is a function of integers that name it (a seed, what it is for, a step, a position). So it can
be computed for any step, on any machine, in any order. All functions take arrays that broadcast against each other.
"""

from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
# An element that no round has moved, which would be a bias, has a chance of 2 ** -24.
_SHUFFLE_ROUNDS = np.arange(1, 25, dtype=np.uint64) * _GOLDEN

MIN_RUN = 4096
_MULTIPLICATIONS = (
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
)


def hash64(*keys: ArrayLike) -> np.ndarray:
    """Hashes integers into 64 random bits, one key after the other.

    Args:
        keys: integer arrays or numbers that broadcast against each other.

    Returns:
        uint64, of the broadcast shape (at least one dimension).
    """
    state = np.full(1, 0x243F6A8885A308D3, np.uint64)  # digits of pi: any constant would do
    for key in keys:
        state = state + _GOLDEN * (np.atleast_1d(key).astype(np.uint64) + np.uint64(1))
        _mix(state, np.empty_like(state))
    return state


def uniform(*keys: ArrayLike) -> np.ndarray:
    """Hashes integers into float64 numbers of [0, 1)."""
    return (hash64(*keys) >> np.uint64(11)) * 2.0**-53


def permute(positions: ArrayLike, lengths: ArrayLike, *keys: ArrayLike) -> np.ndarray:
    """Elements at ``positions`` of random permutations of ``range(lengths)``, without making the permutations.

    Each combination of keys has a permutation of its own. It is the swap-or-not shuffle (Hoang, Morris and Rogaway,
    CRYPTO 2012): in every round an element and its mirror image about a random point are swapped or stay, as a
    hash of the two says.

    Args:
        positions: integers with ``0 <= positions < lengths``.
        lengths: integers of at least 1.
        keys: integers that name the permutations.

    Returns:
        int64 of the broadcast shape, each in ``range(lengths)``.
    """
    return _shuffle(positions, lengths, hash64(*keys), _SHUFFLE_ROUNDS)


def inverse_permute(elements: ArrayLike, lengths: ArrayLike, *keys: ArrayLike) -> np.ndarray:
    """Positions at which ``permute`` with the same lengths and keys gives ``elements``."""
    return _shuffle(elements, lengths, hash64(*keys), _SHUFFLE_ROUNDS[::-1])  # each round is its own inverse


def _shuffle(elements: ArrayLike, lengths: ArrayLike, base: np.ndarray, rounds: np.ndarray) -> np.ndarray:
    """Rounds of the swap-or-not shuffle, for permutations that ``base`` names."""
    length = np.asarray(lengths).astype(np.uint64)
    element = np.empty(np.broadcast_shapes(np.shape(elements), length.shape, base.shape), np.uint64)
    element[...] = elements
    for part, name in _long_runs(base) if base.shape == element.shape and not length.ndim else [(slice(None), base)]:
        _shuffle_in_place(element[part], length, name, rounds)
    return element.view(np.int64)


def _long_runs(base: np.ndarray) -> list[tuple[slice, np.ndarray]]:
    """Parts that belong to one permutation each, if they are long: its key is then computed once per round."""
    if base.ndim == 1:
        edges = [0, *(np.flatnonzero(base[1:] != base[:-1]) + 1).tolist(), len(base)]
        if len(edges) - 1 <= max(1, len(base) // MIN_RUN):
            return [(slice(start, stop), base[start : start + 1]) for start, stop in pairwise(edges)]
    return [(slice(None), base)]


def _shuffle_in_place(element: np.ndarray, length: np.ndarray, base: np.ndarray, rounds: np.ndarray) -> None:
    """All in place, as fresh memory for every result would take longer than the results.

    Fastest with some ten thousand elements, of which all that is needed stays in a core's caches.
    """
    key, key_scratch = np.empty((2, *base.shape), np.uint64)
    point = np.empty(np.broadcast_shapes(length.shape, base.shape), np.uint64)
    mirror, swaps, scratch = np.empty((3, *element.shape), np.uint64)
    for number in rounds:
        np.add(base, number, out=key)
        _mix(key, key_scratch)
        np.floor_divide(key, length, out=point)
        point *= length
        np.subtract(key, point, out=point)  # key % length, which NumPy does not vectorize as it does the division
        np.subtract(point, element, out=mirror)
        np.add(mirror, length, out=scratch)
        np.minimum(mirror, scratch, out=mirror)  # where one is below 0 or too large, the other is right
        np.maximum(element, mirror, out=swaps)
        swaps *= _GOLDEN
        swaps += key
        _multiply(swaps, scratch)
        swaps.view(np.int64)[...] >>= 63  # the highest bit decides: all bits where they are swapped, else none
        mirror ^= element
        mirror &= swaps
        element ^= mirror


def _mix(state: np.ndarray, scratch: np.ndarray) -> None:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), in place."""
    _multiply(state, scratch)
    np.right_shift(state, np.uint64(31), out=scratch)
    state ^= scratch


def _multiply(state: np.ndarray, scratch: np.ndarray) -> None:
    """All of ``_mix`` but its last step, which leaves the highest bit as it is."""
    for shift, factor in _MULTIPLICATIONS:
        np.right_shift(state, shift, out=scratch)
        state ^= scratch
        state *= factor
