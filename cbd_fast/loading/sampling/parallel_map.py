"""Long computations in blocks that stay in a core's cache, on all of this process's cores."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from cbd_fast.resources import num_cores

# Numbers of 64 bits. A few arrays of so many stay in a core's caches; with fewer, threads would spend their time on
# passing the interpreter's lock to each other: one thread alone is fastest with a third of it.
BLOCK_SIZE = 3 << 14


def map_range(
    function: Callable[[np.ndarray], np.ndarray], start: int, stop: int, dtype: DTypeLike = np.int64
) -> np.ndarray:
    """``function(np.arange(start, stop))`` without its intermediate results ever being so long.

    Args:
        function: from ``(n,)`` int64 numbers to ``(n,)`` values, each of which depends on its number alone.
        start: first number.
        stop: number after the last.
        dtype: dtype of the result; the indices of most datasets fit 32 bits.

    Returns:
        ``(stop - start,)`` values.
    """
    values = np.empty(stop - start, dtype)

    def fill(block_start: int) -> None:
        block_stop = min(block_start + BLOCK_SIZE, stop)
        values[block_start - start : block_stop - start] = function(np.arange(block_start, block_stop))

    on_all_cores(fill, range(start, stop, BLOCK_SIZE))
    return values


def on_all_cores(work: Callable[[Any], None], items: Sequence[Any]) -> None:
    """Calls ``work`` with every item, from threads: NumPy leaves the interpreter's lock while it computes.

    This thread is one of them, as each thread keeps memory of its own.

    Raises:
        Exception: whatever ``work`` raises.
    """
    remaining = iter(items)

    def work_off() -> None:
        for item in remaining:
            work(item)

    num_others = min(num_cores(), len(items)) - 1
    with ThreadPoolExecutor(max(1, num_others), thread_name_prefix="cbd-block") as pool:
        others = [pool.submit(work_off) for _ in range(num_others)]
        work_off()
        for other in others:
            other.result()  # its error is raised here
