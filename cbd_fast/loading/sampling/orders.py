"""Orders of images: pure functions from the number of a draw to the index of an image.

Draw t of a run is image ``t % batch_size`` of global step ``t // batch_size``. No order keeps any state, so every
process, every resumed run and every number of processes computes the same.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from cbd_fast.loading.counter_rng import permute
from cbd_fast.loading.sampling.parallel_map import BLOCK_SIZE
from cbd_fast.loading.sampling.quota_windows import Windows, plan_windows

# What a permutation is for; the first key after the seed, so that no two uses share their randomness.
_EPOCH, _ROUND, _WINDOW, _WITHIN_CLASS = range(4)
MAX_DRAWS_KEPT = 1 << 20  # of which class and visit are remembered; one plan, if it has more
MAX_WINDOWS_PLANNED = 16


class Order(Protocol):
    """An order of images."""

    @property
    def class_fractions(self) -> np.ndarray:
        """``(num_classes,)`` float64 fraction of all draws of the run that falls on each class; sums to 1."""

    def __call__(self, draws: np.ndarray) -> np.ndarray:
        """``(n,)`` int64 numbers of draws, in any company, to ``(n,)`` int64 indices of images."""


@dataclass(frozen=True, kw_only=True)
class SequentialOrder:
    """Every image once, in the order of the index."""

    class_fractions: np.ndarray

    def __call__(self, draws: np.ndarray) -> np.ndarray:
        return draws


@dataclass(frozen=True, kw_only=True)
class InstanceOrder:
    """Every N draws hold each of the N images exactly once, in an order of their own."""

    num_images: int
    seed: int
    class_fractions: np.ndarray

    def __call__(self, draws: np.ndarray) -> np.ndarray:
        epochs, positions = np.divmod(draws, self.num_images)
        return permute(positions, self.num_images, self.seed, _EPOCH, epochs)


@dataclass(frozen=True, kw_only=True)
class DrawnClasses:
    """The classes that are drawn from.

    Attributes:
        starts: ``(C,)`` int64 index of each class's first image.
        counts: ``(C,)`` int64 images of each class, at least 1.
        seed: integer of 64 bits.
    """

    starts: np.ndarray
    counts: np.ndarray
    seed: int

    @classmethod
    def choose(cls, starts: np.ndarray, are_drawn: np.ndarray, seed: int) -> "DrawnClasses":
        """Some of the classes.

        Args:
            starts: ``(num_classes + 1,)`` index of each class's first image.
            are_drawn: ``(num_classes,)`` bool.
            seed: integer of 64 bits.
        """
        return cls(starts=starts[:-1][are_drawn], counts=np.diff(starts)[are_drawn], seed=seed)

    def images(self, classes: np.ndarray, visits: np.ndarray) -> np.ndarray:
        """Images that classes give at their v-th visit: all of a class, shuffled, before any of them comes again.

        Args:
            classes: ``(n,)`` int64, positions among the classes that are drawn from.
            visits: ``(n,)`` int64, how often each was drawn before.

        Returns:
            ``(n,)`` int64 indices of images.
        """
        counts = self.counts[classes]
        cycles, positions = np.divmod(visits, counts)
        return self.starts[classes] + permute(positions, counts, self.seed, _WITHIN_CLASS, classes, cycles)


@dataclass(frozen=True, kw_only=True)
class ClassBalancedOrder:
    """Every round of C draws holds each of the C classes exactly once, in an order of its own."""

    classes: DrawnClasses
    class_fractions: np.ndarray

    def __call__(self, draws: np.ndarray) -> np.ndarray:
        num_classes = len(self.classes.counts)
        rounds, positions = np.divmod(draws, num_classes)
        classes = permute(positions, num_classes, self.classes.seed, _ROUND, rounds)
        return self.classes.images(classes, rounds)


@dataclass(frozen=True, kw_only=True)
class QuotaOrder:
    """Any fractions of the classes: after every window each class has come floor or ceil of its exact number of times.

    The draws of a window are shuffled. A window is so long that every class is due at least once in it; that is why
    the rounded numbers never fall from one window to the next.

    Attributes:
        classes: those that are drawn from, C of them.
        drawn_by: from a number of draws to the exact ``(C,)`` float64 number of them that falls on each class.
        window: draws of a window.
        class_fractions: ``(num_classes,)`` float64 fraction of all draws of the run that falls on each class.
    """

    classes: DrawnClasses
    drawn_by: Callable[[int], np.ndarray]
    window: int
    class_fractions: np.ndarray
    # planning takes as long as it serves draws; keeping the last few plans changes nothing but speed
    _plans: dict[int, Windows] = field(init=False, repr=False, default_factory=dict)
    _planning: threading.Lock = field(init=False, repr=False, default_factory=threading.Lock)

    def __call__(self, draws: np.ndarray) -> np.ndarray:
        plans, positions = np.divmod(draws, self._planned_draws)
        classes, visits = np.empty_like(positions), np.empty_like(positions)
        with self._planning:  # one thread plans for all; from here on, so that earlier draws have their turn first
            numbers = plans[:1] if (plans == plans[:1]).all() else np.unique(plans)
            for number in numbers:
                here = slice(None) if len(numbers) == 1 else plans == number
                classes[here], visits[here] = self._plan(int(number))(positions[here])
        return self.classes.images(classes, visits)

    def quotas(self, number: int) -> np.ndarray:
        """``(C,)`` int64 draws of each class in a window."""
        return self._rounded(number + 1) - self._rounded(number)

    def _plan(self, number: int) -> Windows:
        """A plan that is kept, or else made."""
        if number not in self._plans:
            if len(self._plans) == max(1, MAX_DRAWS_KEPT // self._planned_draws):
                del self._plans[next(iter(self._plans))]  # before, not after, the next one needs memory
            self._plans[number] = self._plan_windows(number)
        return self._plans[number]

    @property
    def _planned_draws(self) -> int:
        """Draws of the windows that are planned together: many if they are short, as each costs a millisecond."""
        return self.window * min(MAX_WINDOWS_PLANNED, max(1, BLOCK_SIZE // self.window))

    def _rounded(self, number: int) -> np.ndarray:
        """Draws of each class before a window: floor or ceil of the exact number, summing to the number of draws."""
        exact = self.drawn_by(number * self.window)
        whole = np.floor(exact).astype(np.int64)
        num_missing = number * self.window - int(whole.sum())
        whole[np.argsort(whole - exact, kind="stable")[:num_missing]] += 1
        return whole

    def _plan_windows(self, number: int) -> Windows:
        """The draws ``number * _planned_draws`` up to ``(number + 1) * _planned_draws``."""
        num_windows = self._planned_draws // self.window
        numbers = number * num_windows + np.arange(num_windows)
        before = np.stack([self._rounded(int(each)) for each in (*numbers, numbers[-1] + 1)])
        return plan_windows(before, lambda window: (self.classes.seed, _WINDOW, numbers[window]))
