"""Randomness without state: hashes of counters, and permutations whose elements are computed one by one.

Whatever is random here is a function of integers that name it (a seed, what it is for, a step, a position). So it can
be computed for any step, on any machine, in any order. All functions take arrays that broadcast against each other.
"""

import numpy as np
from numpy.typing import ArrayLike

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
# An element that no round has moved, which would be a bias, has a chance of 2 ** -24.
_SHUFFLE_ROUNDS = np.arange(1, 25, dtype=np.uint64) * _GOLDEN


def hash64(*keys: ArrayLike) -> np.ndarray:
    """Hashes integers into 64 random bits, one key after the other.

    Args:
        keys: integer arrays or numbers that broadcast against each other.

    Returns:
        uint64, of the broadcast shape (at least one dimension).
    """
    state = np.full(1, 0x243F6A8885A308D3, np.uint64)  # digits of pi: any constant would do
    for key in keys:
        state = _mix(state + _GOLDEN * (np.atleast_1d(key).astype(np.uint64) + np.uint64(1)))
    return state


def uniform(*keys: ArrayLike) -> np.ndarray:
    """Hashes integers into float64 numbers of [0, 1)."""
    return (hash64(*keys) >> np.uint64(11)) * 2.0**-53


def permute(positions: ArrayLike, lengths: ArrayLike, *keys: ArrayLike) -> np.ndarray:
    """Elements at ``positions`` of random permutations of ``range(lengths)``, without making the permutations.

    Each combination of keys has a permutation of its own. It is the swap-or-not shuffle (Hoang, Morris and Rogaway,
    CRYPTO 2012): in every round an element and its mirror image about a random point change places or stay, as a
    hash of the two says.

    Args:
        positions: integers with ``0 <= positions < lengths``.
        lengths: integers of at least 1.
        keys: integers that name the permutations.

    Returns:
        int64 of the broadcast shape, each in ``range(lengths)``.
    """
    length = np.asarray(lengths).astype(np.uint64)
    element = np.asarray(positions).astype(np.uint64)
    base = hash64(*keys)
    for number in _SHUFFLE_ROUNDS:
        key = _mix(base + number)
        mirror = (key % length + length - element) % length
        swaps = _mix(key + _GOLDEN * np.maximum(element, mirror)) >> np.uint64(63)
        element = np.where(swaps, mirror, element)
    return element.astype(np.int64)


def _mix(state: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
