"""The console and its progress bars, which are drawn on a terminal only."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import Segment

from cbd_fast.errors import printable
from cbd_fast.processes import env_local_rank

MIN_SECONDS = 0.5  # a rate over less time says nothing


class SafeConsole(Console):
    """A console on which text is only ever text: terminal escapes in names from outside are shown, not obeyed."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or segment.text.replace("\n", "").isprintable():
                yield segment
            else:
                yield Segment("\n".join(map(printable, segment.text.split("\n"))), segment.style)


def make_console(**options: Any) -> Console:
    """A console that draws only on a real terminal, whatever FORCE_COLOR says.

    Args:
        **options: those of rich's ``Console``.
    """
    return SafeConsole(force_terminal=None if sys.stdout.isatty() else False, **options)


class Rate:
    """Items per second since this object was made.

    Args:
        num_before: items that were done earlier, which do not count.
    """

    def __init__(self, num_before: int = 0) -> None:
        self._num_before, self._start_time = num_before, time.monotonic()

    def describe(self, num_done: int) -> str:
        """The rate as ``1,234/s``, or an empty text in the first half second."""
        seconds = time.monotonic() - self._start_time
        return f"{(num_done - self._num_before) / seconds:,.0f}/s" if seconds > MIN_SECONDS else ""


def make_bars(console: Console) -> Progress:
    """Progress bars, to be used in a ``with`` statement; every task needs a field ``rate``."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, disable=not console.is_terminal)


@contextmanager
def bar_of(
    description: str, on_progress: Callable[[int, int], None] | None = None
) -> Iterator[Callable[[int, int], None]]:
    """A progress bar while the block runs.

    Args:
        description: words before the bar.
        on_progress: a function to be used in place of a bar.

    Yields:
        A function of the number of items done and their total number.
    """
    if on_progress is not None:
        yield on_progress
        return
    is_first = env_local_rank() == 0  # of a launcher's processes on this machine only one draws
    with make_bars(make_console(quiet=not is_first)) as bars:
        task, rate = bars.add_task(description, total=None, rate=""), Rate()
        yield lambda done, total: bars.update(task, completed=done, total=total, rate=rate.describe(done))
