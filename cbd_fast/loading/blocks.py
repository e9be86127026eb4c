"""Long computations in blocks that stay in a core's cache, on all of this process's cores."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from cbd_fast.loading.machine import num_cores

# Numbers of 64 bits. A few arrays of so many stay in a core's caches; with fewer, threads would spend their time on
# passing the interpreter's lock to each other: one thread alone is fastest with half of it.
BLOCK_SIZE = 1 << 15
BLOCK_BYTES = 16 * 8 * BLOCK_SIZE  # of a block's intermediate results


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
    # From the largest piece that is freed the C library learns how much to keep. If it gave back what a block frees,
    # the system would clear the same memory again for the next block, which takes a fifth of the time.
    np.empty(BLOCK_BYTES, np.uint8)
    with ThreadPoolExecutor(num_cores(), thread_name_prefix="cbd-block") as pool:
        for _ in pool.map(work, items):  # an error of any is raised here
            pass
