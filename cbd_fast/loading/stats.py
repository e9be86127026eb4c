"""Where a loader's time goes."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from cbd_fast.loading.forks import watch_forks


@dataclass(frozen=True, kw_only=True)
class LoaderStats:
    """What a loader has done, and how long each part of it took.

    Attributes:
        num_batches: batches made; a few of them may not have been asked for yet.
        num_images: images in these batches.
        num_cached: images in these batches that came from the cache.
        planning_seconds: time to choose images, boxes and colours, of all threads together, as for the next three.
        reading_seconds: time to read files.
        decoding_seconds: time to decode, cut and resize.
        finishing_seconds: time to flip, colour, convert to float32 and call the caller's ``transform``; of a GPU, which
            computes on its own, the time to ask it to.
        waiting_seconds: time that the caller waited for batches.
    """

    num_batches: int = 0
    num_images: int = 0
    num_cached: int = 0
    planning_seconds: float = 0.0
    reading_seconds: float = 0.0
    decoding_seconds: float = 0.0
    finishing_seconds: float = 0.0
    waiting_seconds: float = 0.0

    def since(self, before: "LoaderStats") -> "LoaderStats":
        """What was done after ``before``."""
        return LoaderStats(**{name: value - getattr(before, name) for name, value in asdict(self).items()})

    def milliseconds_per_batch(self) -> dict[str, float]:
        """Time of a batch by what it went to, in the order of the work."""
        seconds = {name.removesuffix("_seconds"): value for name, value in asdict(self).items() if "_seconds" in name}
        return {name: 1000 * value / max(self.num_batches, 1) for name, value in seconds.items()}


class Recorder:
    """Sums of what any thread reports."""

    def __init__(self) -> None:
        self._totals: dict[str, Any] = asdict(LoaderStats())
        self._adding = threading.Lock()
        watch_forks(self)

    def enter_child(self) -> None:
        """A lock that nobody has: who had it is no thread of a forked child."""
        self._adding = threading.Lock()

    def add(self, name: str, amount: float) -> None:
        """Adds to one of the attributes of ``LoaderStats``."""
        with self._adding:
            self._totals[name] += amount

    @contextmanager
    def timing(self, what: str) -> Iterator[None]:
        """Adds the time of a block to ``what``: ``planning``, ``reading``, ..."""
        start_time = time.perf_counter()
        try:
            yield
        finally:
            self.add(f"{what}_seconds", time.perf_counter() - start_time)

    def stats(self) -> LoaderStats:
        """The sums so far."""
        with self._adding:
            return LoaderStats(**self._totals)
