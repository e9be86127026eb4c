"""Long computations in blocks that stay in a core's cache, on all of this process's cores."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from cbd_fast.loading.machine import num_cores

BLOCK_SIZE = 1 << 14  # numbers of 64 bits: eight arrays of so many fit a core's second-level cache


def map_range(
    function: Callable[[np.ndarray], np.ndarray], first: int, end: int, dtype: DTypeLike = np.int64
) -> np.ndarray:
    """``function(np.arange(first, end))`` without its intermediate results ever being so long.

    Args:
        function: from ``(n,)`` int64 numbers to ``(n,)`` values, each of which depends on its number alone.
        first: first number.
        end: number after the last.
        dtype: of the result; one row of most indexes fits 32 bits.

    Returns:
        ``(end - first,)`` values.
    """
    values = np.empty(end - first, dtype)

    def fill(start: int) -> None:
        stop = min(start + BLOCK_SIZE, end)
        values[start - first : stop - first] = function(np.arange(start, stop))

    on_all_cores(fill, range(first, end, BLOCK_SIZE))
    return values


def on_all_cores(work: Callable[[Any], None], items: Iterable[Any]) -> None:
    """Calls ``work`` with every item, from threads: NumPy leaves the interpreter's lock while it computes."""
    items = list(items)
    if len(items) <= 1:
        for item in items:
            work(item)
        return
    with ThreadPoolExecutor(num_cores(), thread_name_prefix="cbd-block") as pool:
        for _ in pool.map(work, items):  # an error of any is raised here
            pass
