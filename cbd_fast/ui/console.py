"""What draws on a terminal, and only there: the console, and progress bars with the rate."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cbd_fast.processes import env_local_rank

MIN_SECONDS = 0.5  # before which a rate says nothing


def make_console() -> Console:
    """A console that draws only on a real terminal, whatever FORCE_COLOR says."""
    return Console(force_terminal=None if sys.stdout.isatty() else False)


class Rate:
    """Things per second since it was made."""

    def __init__(self, num_before: int = 0) -> None:
        """``num_before`` were done before."""
        self._num_before, self._began = num_before, time.monotonic()

    def describe(self, num_done: int) -> str:
        """``1,234/s``, or nothing while it is too early."""
        seconds = time.monotonic() - self._began
        return f"{(num_done - self._num_before) / seconds:,.0f}/s" if seconds > MIN_SECONDS else ""


def make_bars(console: Console) -> Progress:
    """Bars of tasks that have a field ``rate``; to be used in a ``with`` statement."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, disable=not console.is_terminal)


@contextmanager
def bar_of(description: str, instead: Callable[[int, int], None] | None = None) -> Iterator[Callable[[int, int], None]]:
    """Yields a function to be told how many of how many are done: ``instead``, if given, or one that draws a bar."""
    if instead is not None:
        yield instead
        return
    is_first = env_local_rank() == 0  # of a launcher's processes on this machine only one draws
    with make_bars(make_console() if is_first else Console(quiet=True)) as bars:
        task, rate = bars.add_task(description, total=None, rate=""), Rate()
        yield lambda done, total: bars.update(task, completed=done, total=total, rate=rate.describe(done))
