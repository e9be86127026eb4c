"""Windows of draws with given quotas of classes: which class each draw has, and how often it has come before."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cbd_fast.loading.counter_rng import inverse_permute
from cbd_fast.loading.sampling.parallel_map import BLOCK_SIZE, on_all_cores


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Consecutive windows, planned; with millions of draws in a window, the smallest types that do save much memory.

    Attributes:
        draws: ``(num_windows * window,)``, of each draw its ``class`` and its ``rank``: how often that class was drawn
            before in the same window.
        before: ``(num_windows + 1, C)`` how often each class was drawn before each window.
    """

    draws: np.ndarray
    before: np.ndarray

    def __call__(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``(n,)`` int64 classes, and how often each of them was drawn before, for some of the draws."""
        draws = self.draws[positions]
        classes = draws["class"].astype(np.int64)
        windows = positions // (len(self.draws) // (len(self.before) - 1))
        return classes, self.before[windows, classes] + draws["rank"]


def plan_windows(before: np.ndarray, keys: Callable[[np.ndarray], tuple[Any, ...]]) -> Windows:
    """Shuffles the draws of each window.

    Each class has as many tickets in a window as draws. A permutation says where each ticket is drawn; and as the
    tickets of a class follow each other, its draws are found without a look at other classes.

    Args:
        before: ``(num_windows + 1, C)`` int64, how often each class is drawn before each window, and before the next.
        keys: from ``(n,)`` numbers of windows, the first being 0, to the keys of their permutations.
    """
    num_classes = before.shape[1]
    quotas = np.diff(before, axis=0).ravel()  # an owner of tickets is a class in a window
    assert quotas.min() >= 0, "a window is shorter than a class needs"
    ends = np.cumsum(quotas)
    starts, num_draws = ends - quotas, int(ends[-1])
    window = num_draws // (len(before) - 1)
    types = [("class", np.min_scalar_type(num_classes)), ("rank", np.min_scalar_type(int(quotas.max())))]
    draws = np.empty(num_draws, types)

    def find_draws(start: int, stop: int) -> None:
        """Finds the draws of the owners ``start`` up to ``stop``."""
        tickets = np.arange(starts[start], ends[stop - 1])
        owners = np.repeat(np.arange(start, stop), quotas[start:stop])
        windows, elements = np.divmod(tickets, window)
        positions = windows * window + inverse_permute(elements, window, *keys(windows))
        apart = (owners - start) * num_draws  # sorting all then sorts each owner's
        positions = np.sort(positions + apart) - apart
        draws["class"][positions] = owners - windows * num_classes
        draws["rank"][positions] = tickets - starts[owners]

    edges = np.unique(np.searchsorted(ends, np.arange(0, num_draws, BLOCK_SIZE), side="right"))
    on_all_cores(lambda owners: find_draws(*owners), list(zip(edges, [*edges[1:], len(ends)], strict=True)))
    return Windows(draws=draws, before=before)
