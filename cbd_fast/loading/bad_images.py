"""Images that turn out to be bad: each is replaced by the next of its class, and too many of them end the run."""

import threading
from collections.abc import Callable

import numpy as np

from cbd_fast.errors import RunError
from cbd_fast.shards.reader import ShardReader

NUM_NAMED = 5


class BadImages:
    """The images that cannot be read or decoded; any thread may add to them.

    Attributes:
        reasons: why an image is bad, by its index.
    """

    def __init__(self, shards: ShardReader, max_bad_fraction: float, on_new: Callable[[str, str], None] | None) -> None:
        """Begins with the quarantined images.

        Args:
            shards: the opened split.
            max_bad_fraction: fraction of the split's images, 0 to 1, that may turn out to be bad; one always may.
            on_new: called once for each bad image with its name (``shard:member``) and the reason.
        """
        self.reasons: dict[int, str] = dict.fromkeys(shards.quarantined.tolist(), "quarantined")
        self._shards, self._on_new = shards, on_new
        self._num_allowed = len(self.reasons) + max(1, int(max_bad_fraction * len(shards)))
        self._remembering = threading.Lock()

    def remember(self, new: dict[int, str]) -> None:
        """Adds reasons, by the index of the image.

        Raises:
            RunError: there are more than ``max_bad_fraction`` allows.
        """
        with self._remembering:
            for index in new.keys() - self.reasons.keys():
                self.reasons[index] = new[index]
                if self._on_new:
                    self._on_new(self._shards.name(index), new[index])
        if len(self.reasons) > self._num_allowed:
            named = [f"{self._shards.name(index)} ({why})" for index, why in list(self.reasons.items())[:NUM_NAMED]]
            raise RunError(
                f"{self._shards.folder}: {len(self.reasons)} of {len(self._shards)} images cannot be decoded, "
                f"more than max_bad_fraction allows ({self._num_allowed}); the first: {'; '.join(named)}"
            )

    def are_in(self, indices: np.ndarray) -> np.ndarray:
        """Which of ``(B,)`` indices are those of bad images: ``(B,)`` bool."""
        return np.isin(indices, list(self.reasons))

    def replaced(self, indices: np.ndarray) -> np.ndarray:
        """The same ``(B,)`` int64 indices, each of a bad image replaced by the next of its class.

        Raises:
            RunError: all images of a class are bad.
        """
        return np.array([self._next_good(int(index)) for index in indices], np.int64)

    def _next_good(self, index: int) -> int:
        class_index, good = self._shards.index, index
        while good in self.reasons:
            good = class_index.next_in_class(good)
            if good == index:
                name = self._shards.manifest.classes[int(class_index.labels(index))]
                raise RunError(f"{self._shards.folder}: no image of class {name!r} can be decoded")
        return good
