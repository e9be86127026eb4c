"""Which images, in which order: pure functions from the number of a draw to a row of the index.

Draw t of a run is image ``t % batch_size`` of global step ``t // batch_size``. No policy keeps any state, so every
process, every resumed run and every number of processes computes the same order.
"""

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from cbd_fast.errors import InputError
from cbd_fast.loading.counter_rng import permute
from cbd_fast.loading.sampling.parallel_map import BLOCK_SIZE
from cbd_fast.loading.sampling.quota_windows import Windows, plan_windows

POLICIES = ("instance", "class_balanced", "square_root", "progressive")

# What a permutation is for; the first key after the seed, so that no two uses share their randomness.
_EPOCH, _ROUND, _WINDOW, _WITHIN_CLASS = range(4)
MAX_DRAWS_KEPT = 1 << 20  # of which class and visit are remembered; one plan, if it has more
MAX_WINDOWS_PLANNED = 16


class Order(Protocol):
    """An order of images."""

    def __call__(self, draws: np.ndarray) -> np.ndarray:
        """``(n,)`` int64 numbers of draws to ``(n,)`` int64 rows of the index."""


def make_order(policy: str, starts: np.ndarray, seed: int, num_draws: int | None = None) -> Order:
    """The order of a sampling policy.

    Args:
        policy: ``instance`` (every image equally often), ``class_balanced`` (every class equally often),
            ``square_root`` (each class in proportion to the square root of its images) or ``progressive`` (from
            instance at the first draw to class-balanced at the last, linearly; Kang et al., ICLR 2020).
        starts: ``(num_classes + 1,)`` first row of each class; classes without images are never drawn.
        seed: any integer of 64 bits.
        num_draws: draws of the whole run; only ``progressive`` needs it.

    Raises:
        InputError: no such policy, no images, or ``progressive`` without ``num_draws``.
    """
    counts = np.diff(starts)
    present = np.flatnonzero(counts)
    if not len(present):
        raise InputError(f"sampling={policy}: the split holds no images")
    classes = _Classes(starts=starts[:-1][present], counts=counts[present], seed=seed)
    num_images = int(starts[-1])
    if policy == "instance":
        return InstanceOrder(num_images=num_images, seed=seed)
    if policy == "class_balanced":
        return ClassBalancedOrder(classes=classes)
    if policy == "square_root":
        roots = np.sqrt(classes.counts)
        fractions = roots / math.fsum(roots)
        return QuotaOrder(
            classes=classes, drawn_by=lambda draw: draw * fractions, window=math.ceil(1 / fractions.min())
        )
    if policy == "progressive":
        if not num_draws:
            raise InputError("sampling=progressive: needs the number of steps of the run (total_steps)")
        return QuotaOrder(
            classes=classes,
            drawn_by=_progressive(classes.counts / num_images, num_draws),
            window=math.ceil(num_images / classes.counts.min()),
        )
    raise InputError(f"sampling={policy!r}: must be one of {', '.join(POLICIES)}")


def draw_fractions(policy: str, starts: np.ndarray) -> np.ndarray:
    """How often each image of a class is drawn, as a fraction of all draws of a run.

    Args:
        policy: as for ``make_order``; ``sequential`` draws every image equally often.
        starts: ``(num_classes + 1,)`` first row of each class.

    Returns:
        ``(num_classes,)`` float64; 0 for classes without images.
    """
    counts = np.diff(starts)
    present = counts > 0
    instance, balanced = counts / max(counts.sum(), 1), present / max(present.sum(), 1)
    roots = np.sqrt(counts)
    class_fractions = {
        "instance": instance,
        "sequential": instance,
        "class_balanced": balanced,
        "square_root": roots / max(roots.sum(), 1),
        "progressive": (instance + balanced) / 2,  # it moves from the one to the other, linearly
    }[policy]
    return class_fractions / np.maximum(counts, 1)


@dataclass(frozen=True, kw_only=True)
class InstanceOrder:
    """Every N draws hold each of the N images exactly once, in an order of their own."""

    num_images: int
    seed: int

    def __call__(self, draws: np.ndarray) -> np.ndarray:
        epochs, positions = np.divmod(draws, self.num_images)
        return permute(positions, self.num_images, self.seed, _EPOCH, epochs)


@dataclass(frozen=True, kw_only=True)
class _Classes:
    """The classes that have images: ``(C,)`` first rows and ``(C,)`` counts."""

    starts: np.ndarray
    counts: np.ndarray
    seed: int

    def images(self, classes: np.ndarray, visits: np.ndarray) -> np.ndarray:
        """Row that a class gives at its v-th visit: all its images, shuffled, before any of them comes again."""
        counts = self.counts[classes]
        cycles, positions = np.divmod(visits, counts)
        return self.starts[classes] + permute(positions, counts, self.seed, _WITHIN_CLASS, classes, cycles)


@dataclass(frozen=True, kw_only=True)
class ClassBalancedOrder:
    """Every round of C draws holds each of the C classes exactly once, in an order of its own."""

    classes: _Classes

    def __call__(self, draws: np.ndarray) -> np.ndarray:
        num_classes = len(self.classes.counts)
        rounds, positions = np.divmod(draws, num_classes)
        classes = permute(positions, num_classes, self.classes.seed, _ROUND, rounds)
        return self.classes.images(classes, rounds)


@dataclass(frozen=True, kw_only=True)
class QuotaOrder:
    """Any fractions of the classes: after every window each class has come floor or ceil of its exact share.

    The draws of a window are shuffled. A window is so long that every class's share grows by at least 1 in it; that
    is why the rounded shares never fall from one window to the next.

    Attributes:
        classes: where the images are.
        drawn_by: ``(C,)`` float64 exact number of draws of each class among the first ``draw`` draws; sums to it.
        window: draws of a window.
    """

    classes: _Classes
    drawn_by: Callable[[int], np.ndarray]
    window: int
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

    def quotas(self, number: int) -> np.ndarray:
        """``(C,)`` int64 draws of each class in a window."""
        return self._rounded(number + 1) - self._rounded(number)

    def _rounded(self, number: int) -> np.ndarray:
        """Draws of each class before a window: floor or ceil of the exact fraction, summing to the number of draws."""
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


def _progressive(instance_fractions: np.ndarray, num_draws: int) -> Callable[[int], np.ndarray]:
    """Integral of ``(1 - t / T) * n_c / N + t / T / C`` over draws; class-balanced after the last draw T."""
    balanced_fraction = 1 / len(instance_fractions)

    def drawn_by(draw: int) -> np.ndarray:
        changing, after = min(draw, num_draws), max(draw - num_draws, 0)
        drift = (balanced_fraction - instance_fractions) * (changing * changing / (2 * num_draws))
        return changing * instance_fractions + drift + after * balanced_fraction

    return drawn_by
