"""Images that turn out bad: each is replaced by the next of its class, and too many of them end the run."""

import threading
from collections.abc import Callable

import numpy as np

from cbd_fast.errors import RunError
from cbd_fast.shards.reader import ShardReader

NUM_NAMED = 5


class BadImages:
    """Remembers rows that cannot be read or decoded; any thread may tell of them.

    Attributes:
        reasons: why, by row.
    """

    def __init__(self, shards: ShardReader, max_bad_fraction: float, on_new: Callable[[str, str], None] | None) -> None:
        """Knows of the quarantined ones from the beginning.

        Args:
            shards: of the images.
            max_bad_fraction: of the split's images that may turn out bad; one alone never is too many.
            on_new: called once with place and reason of each.
        """
        self.reasons: dict[int, str] = dict.fromkeys(shards.quarantined.tolist(), "quarantined")
        self._shards, self._on_new = shards, on_new
        self._num_allowed = len(self.reasons) + max(1, int(max_bad_fraction * len(shards)))
        self._remembering = threading.Lock()

    def remember(self, new: dict[int, str]) -> None:
        """Adds rows and reasons.

        Raises:
            RunError: there are more than ``max_bad_fraction`` allows.
        """
        with self._remembering:
            for row in new.keys() - self.reasons.keys():
                self.reasons[row] = new[row]
                if self._on_new:
                    self._on_new(self._shards.name(row), new[row])
        if len(self.reasons) > self._num_allowed:
            named = [f"{self._shards.name(row)} ({why})" for row, why in list(self.reasons.items())[:NUM_NAMED]]
            raise RunError(
                f"{self._shards.folder}: {len(self.reasons)} of {len(self._shards)} images cannot be decoded, "
                f"more than max_bad_fraction allows ({self._num_allowed}); the first: {'; '.join(named)}"
            )

    def are_in(self, rows: np.ndarray) -> np.ndarray:
        """``(B,)`` rows to ``(B,)`` bool."""
        return np.isin(rows, list(self.reasons))

    def replaced(self, rows: np.ndarray) -> np.ndarray:
        """The same ``(B,)`` rows, each bad one replaced by the next of its class.

        Raises:
            RunError: all images of a class are bad.
        """
        return np.array([self._next_good(int(row)) for row in rows], np.int64)

    def _next_good(self, row: int) -> int:
        good = row
        while good in self.reasons:
            good = self._shards.index.next_in_class(good)
            if good == row:
                name = self._shards.manifest.classes[int(self._shards.index.labels(row))]
                raise RunError(f"{self._shards.folder}: no image of class {name!r} can be decoded")
        return good
