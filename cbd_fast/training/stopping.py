"""Signals that ask a training to stop: all of its processes end after the same step, with a checkpoint."""

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NamedTuple, TypeVar

import torch
from torch import distributed

from cbd_fast.errors import Stopped
from cbd_fast.processes import is_launched

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
LAUNCHER_SECONDS = 2.0  # within which a launcher passes on a signal that this process may have got itself
Handler = Callable[[int, FrameType | None], object] | signal.Handlers
Item = TypeVar("Item")


class Agreed(NamedTuple):
    """What the processes do together.

    Attributes:
        signum: number of the signal at which all stop; 0 to go on.
        saves: whether all write a checkpoint.
    """

    signum: int = 0
    saves: bool = False


class Stops:
    """Signals that came, and the step after which all processes stop.

    While a model learns, a signal is only noted: ``agree``, which all processes call equally often, tells all of them
    at the same call, whichever of them got it. At other times (before the first step, between two models) there is
    nothing to save, and a signal ends the process at once; so does a second SIGINT at any time.
    """

    def __init__(self, num_processes: int = 1) -> None:
        """A group of its own for what is agreed on; all processes, which are joined already, make it together."""
        self._group: Any = distributed.new_group(backend="gloo") if num_processes > 1 else None
        self._pending: tuple[distributed.Work, torch.Tensor] | None = None
        self._signum, self._is_deferred, self._listens = 0, False, False
        self._first_came = 0.0

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Listens to signals as long as the block runs; only Python's main thread can.

        Signals that are ignored, as SIGHUP is under ``nohup``, stay so.

        Raises:
            Stopped: a signal came; it is a ``KeyboardInterrupt``.
        """
        with handled_by(self._note) as self._listens:
            yield

    def interrupt(self, signum: int) -> None:
        """Has the training stop as if a signal had come; called from another thread."""
        if self._listens:
            signal.pthread_kill(threading.main_thread().ident or 0, signum)
        else:
            self._signum = self._signum or signum

    def defer(self) -> None:
        """From now on signals wait for ``agree``."""
        self._is_deferred = True

    def end_at_once(self) -> None:
        """From now on signals end the process at once.

        Raises:
            Stopped: one came that has not been agreed on.
        """
        self._is_deferred = False
        if self._signum:
            raise Stopped(self._signum)

    def agree(self, saves: bool = False) -> Agreed:
        """What all processes do now, from what any of them wanted at this call, if it is alone, or at the one before.

        Nobody waits for a device or for a slower process: the answer to the last question has arrived meanwhile.

        Args:
            saves: whether this process wants a checkpoint.
        """
        if self._group is None:
            return Agreed(self._signum, saves)
        agreed = Agreed()
        if self._pending is not None:
            asked, wanted = self._pending
            asked.wait()
            agreed, self._pending = Agreed(int(wanted[0]), bool(wanted[1])), None
        if not agreed.signum:
            wanted = torch.tensor([self._signum, saves], dtype=torch.int32)
            work = distributed.all_reduce(wanted, distributed.ReduceOp.MAX, group=self._group, async_op=True)
            assert work is not None  # as on a process that is not in the group
            self._pending = work, wanted
        return agreed

    def interrupting(self, items: Iterable[Item]) -> Iterator[Item]:
        """Passes items on, as many on each process, until all stop.

        Raises:
            Stopped: in the same place on all processes.
        """
        for item in items:
            if self._is_deferred and (signum := self.agree().signum):
                raise Stopped(signum)
            yield item

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if not self._signum:
            self._signum, self._first_came = signum, time.monotonic()
            if not self._is_deferred:
                raise Stopped(signum)
        elif signum == signal.SIGINT:
            is_copy = is_launched() and time.monotonic() < self._first_came + LAUNCHER_SECONDS
            if not is_copy:
                raise KeyboardInterrupt


@contextmanager
def handled_by(handler: Handler) -> Iterator[bool]:
    """Has a function, or the system's default, deal with the signals as long as the block runs.

    Yields:
        Whether it does: only Python's main thread can set it.
    """
    is_main = threading.current_thread() is threading.main_thread()
    before = {signum: signal.getsignal(signum) for signum in SIGNALS} if is_main else {}
    # None: a handler that is not Python's, which could not be given back
    mine = {signum: old for signum, old in before.items() if old not in (signal.SIG_IGN, None)}
    for signum in mine:
        signal.signal(signum, handler)
    try:
        yield is_main
    finally:
        for signum, old in mine.items():
            signal.signal(signum, old)
