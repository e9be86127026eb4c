"""Batches that are made ahead of time on threads, each on a GPU stream of its own."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from cbd_fast.loading.batch import Batch
from cbd_fast.loading.forks import OwnProcess
from cbd_fast.loading.stats import Recorder


class _ThreadStream(threading.local):
    """A stream for each thread, so that one batch does not wait for the other."""

    stream: torch.cuda.Stream | None = None


class Prefetcher:
    """Threads that make batches; the batches of several iterators may be under way."""

    def __init__(self, num_ahead: int, device: torch.device, recorder: Recorder, process: OwnProcess) -> None:
        """Starts no thread yet.

        Args:
            num_ahead: batches that are made ahead of time.
            device: device of the batches.
            recorder: gets the time that the caller waits for batches.
            process: the process that the threads are in.
        """
        self._num_ahead, self._device, self._recorder = num_ahead, device, recorder
        self._threads = ThreadPoolExecutor(num_ahead, thread_name_prefix="cbd-batch")
        self._own = _ThreadStream()
        self._process = process

    def batches(self, make: Callable[[int], Batch], start: int, stop: int) -> Iterator[Batch]:
        """Batches of the steps ``start`` up to, not including, ``stop``, ready to use on the caller's stream.

        Args:
            make: makes the batch of a step; called from several threads.
            start: first step.
            stop: step after the last.

        Raises:
            RunError: in a forked child, also if the iterator was made before.
        """
        pending: deque[Future[tuple[Batch, torch.cuda.Event | None]]] = deque()
        upcoming = iter(range(start, stop))
        try:
            while True:
                self._process.require()
                while len(pending) < self._num_ahead and (step := next(upcoming, None)) is not None:
                    pending.append(self._threads.submit(self._process.call, self._make_on_stream, make, step))
                if not pending:
                    return
                with self._recorder.timing("waiting"):
                    batch, is_made = pending.popleft().result()
                if is_made is not None:
                    # the training stream waits for the batch, this thread does not
                    stream = torch.cuda.current_stream(self._device)
                    stream.wait_event(is_made)
                    for tensor in batch:
                        if tensor.is_cuda:  # unless a transform has moved it
                            tensor.record_stream(stream)
                yield batch
        finally:
            for future in pending if self._process else ():  # a child would wait for the locks of the parent's threads
                future.cancel()

    def close(self) -> None:
        """Ends the threads; batches that are being made are finished first."""
        self._threads.shutdown(cancel_futures=True)

    def _make_on_stream(self, make: Callable[[int], Batch], step: int) -> tuple[Batch, torch.cuda.Event | None]:
        """Makes a batch on this thread's stream; the event says when it is there."""
        if self._device.type != "cuda":
            return make(step), None
        stream = self._own.stream or torch.cuda.Stream(self._device)
        self._own.stream = stream
        with torch.cuda.device(self._device), torch.cuda.stream(stream):
            return make(step), stream.record_event()
