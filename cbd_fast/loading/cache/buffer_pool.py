"""Memory for batches that is used again: the kernel clears fresh memory page by page, and that takes its time."""

import threading
import weakref
from collections.abc import Sequence

import numpy as np
import torch


class BufferPool:
    """Gives tensors whose memory returns here when the last tensor that uses it, or a part of it, is gone.

    Never before: a tensor, its views and its slices keep the array that they are made of alive, and it is the end of
    that array that gives the memory back. So a batch that is kept stays as it is, and the next one has other memory.
    """

    def __init__(self, max_free: int) -> None:
        """Begins empty; it will keep at most ``max_free`` blocks of memory that nobody uses."""
        self._max_free = max_free
        self._free: list[np.ndarray] = []
        self._returning = threading.Lock()

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """An uninitialised tensor of the CPU."""
        num_bytes = int(np.prod(shape)) * dtype.itemsize
        with self._returning:
            fitting = [block for block in self._free if len(block) == num_bytes]
            if fitting:
                # by identity: arrays compare element by element
                self._free = [block for block in self._free if block is not fitting[-1]]
        block = fitting[-1] if fitting else np.empty(num_bytes, np.uint8)
        lent = block.view()
        weakref.finalize(lent, self._give_back, block).atexit = False
        return torch.from_numpy(lent).view(dtype).view(*shape)

    def _give_back(self, block: np.ndarray) -> None:
        # a garbage collection may bring us here while this thread has the lock; then the memory is let go
        if self._returning.acquire(blocking=False):
            self._free = [*self._free, block][-self._max_free :]
            self._returning.release()
