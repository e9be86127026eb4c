"""Sampling policies: which fraction of the draws each class gets. Users register their own.

    from cbd_fast import SAMPLING
    from cbd_fast.loading.sampling.policies import Order, fixed_fractions

    @SAMPLING.register("cube_root")
    def cube_root(starts, seed, num_draws) -> Order:
        '''Each class in proportion to the cube root of its images.'''
        return fixed_fractions(starts, seed, np.cbrt(np.diff(starts)))

A policy is a function of ``starts`` (``(num_classes + 1,)`` int64: the images of class c are ``starts[c]`` up to
``starts[c + 1]``), ``seed`` (an integer of 64 bits) and ``num_draws`` (those of the whole run; None if not known). It
returns an ``Order``. The first line of its docstring is what ``--help`` shows.
"""

import math
from collections.abc import Callable

import numpy as np

from cbd_fast.errors import InputError
from cbd_fast.loading.sampling.orders import (
    ClassBalancedOrder,
    DrawnClasses,
    InstanceOrder,
    Order,
    QuotaOrder,
    SequentialOrder,
)
from cbd_fast.registry import SAMPLING

SEQUENTIAL = "sequential"  # the loader's own word for evaluation; no policy, as it draws every image once
MAX_WINDOW = 1 << 27  # draws; planning them takes about 1 GB


def make_order(policy: str, starts: np.ndarray, seed: int, num_draws: int | None = None) -> Order:
    """The order of a sampling policy.

    Args:
        policy: a name in ``SAMPLING``, or ``sequential``.
        starts: ``(num_classes + 1,)`` index of each class's first image; classes without images are never drawn.
        seed: integer of 64 bits.
        num_draws: draws of the whole run; of ours only ``progressive`` needs it.

    Raises:
        InputError: no such policy, no images, or ``progressive`` without ``num_draws``.
    """
    check_sampling(policy)
    counts = np.diff(starts)
    if policy == SEQUENTIAL:
        return SequentialOrder(class_fractions=counts / max(counts.sum(), 1))
    if not counts.any():
        raise InputError(f"sampling={policy}: the split holds no images")
    order: Order = SAMPLING[policy](starts, seed, num_draws)
    return order


def check_sampling(policy: str) -> None:
    """Looks a name up.

    Raises:
        InputError: nothing is registered under it.
    """
    allowed = (*SAMPLING, SEQUENTIAL)
    if policy not in allowed:
        raise InputError(
            f"sampling={policy!r}: must be one of {', '.join(allowed)} (your own: @SAMPLING.register, or --plugin FILE)"
        )


def draw_fractions(policy: str, starts: np.ndarray, num_draws: int | None = None) -> np.ndarray:
    """How often each image of a class is drawn, as a fraction of all draws of a run.

    Args:
        policy: a name in ``SAMPLING``, or ``sequential``.
        starts: ``(num_classes + 1,)`` index of each class's first image.
        num_draws: draws of the whole run, if they are known; none of our policies has other fractions without it.

    Returns:
        ``(num_classes,)`` float64; 0 for classes without images.

    Raises:
        InputError: no such policy, or no images.
    """
    order = make_order(policy, starts, 0, num_draws or int(starts[-1]))
    return order.class_fractions / np.maximum(np.diff(starts), 1)


@SAMPLING.register("instance")
def instance(starts: np.ndarray, seed: int, num_draws: int | None) -> Order:
    """Every image equally often."""
    counts = np.diff(starts)
    return InstanceOrder(num_images=int(starts[-1]), seed=seed, class_fractions=counts / counts.sum())


@SAMPLING.register("class_balanced")
def class_balanced(starts: np.ndarray, seed: int, num_draws: int | None) -> Order:
    """Every class equally often."""
    have_images = np.diff(starts) > 0
    classes = DrawnClasses.choose(starts, have_images, seed)
    return ClassBalancedOrder(classes=classes, class_fractions=have_images / have_images.sum())


@SAMPLING.register("square_root")
def square_root(starts: np.ndarray, seed: int, num_draws: int | None) -> Order:
    """Each class in proportion to the square root of its images."""
    return fixed_fractions(starts, seed, np.sqrt(np.diff(starts)))


@SAMPLING.register("progressive")
def progressive(starts: np.ndarray, seed: int, num_draws: int | None) -> Order:
    """From instance at the run's first draw to class_balanced at its last, linearly (Kang et al., ICLR 2020)."""
    if not num_draws:
        raise InputError("sampling=progressive: needs the number of steps of the run (total_steps)")
    counts = np.diff(starts)
    have_images = counts > 0
    num_images = int(starts[-1])
    classes = DrawnClasses.choose(starts, have_images, seed)
    return QuotaOrder(
        classes=classes,
        drawn_by=_progressive(classes.counts / num_images, num_draws),
        window=math.ceil(num_images / classes.counts.min()),
        class_fractions=(counts / num_images + have_images / have_images.sum()) / 2,
    )


def fixed_fractions(starts: np.ndarray, seed: int, fractions: np.ndarray) -> QuotaOrder:
    """An order in which each class has the same fraction of the draws throughout the run, with exact quotas.

    Args:
        starts: ``(num_classes + 1,)`` index of each class's first image.
        seed: integer of 64 bits.
        fractions: ``(num_classes,)``, 0 or more, of the draws; they are divided by their sum. A class with 0 is never
            drawn.

    Raises:
        InputError: fractions that cannot be had: of another shape, negative or not finite, above 0 for a class
            without images, all 0, or so small that a class would come less than once in ``MAX_WINDOW`` draws.
    """
    counts, fractions = np.diff(starts), np.asarray(fractions, np.float64)
    if fractions.shape != counts.shape:
        raise InputError(f"fractions of the draws: shape {fractions.shape}; must be {counts.shape}, one for each class")
    are_drawn = fractions > 0
    for are_wrong, rule in (
        (~np.isfinite(fractions) | (fractions < 0), "must be 0 or more, and finite"),
        (are_drawn & (counts == 0), "must be 0, as the class has no images"),
    ):
        if are_wrong.any():
            label = int(np.flatnonzero(are_wrong)[0])
            raise InputError(f"fractions of the draws: that of class {label} is {fractions[label]:g}; {rule}")
    if not are_drawn.any():
        raise InputError("fractions of the draws: all are 0; at least one class must be drawn")
    drawn_fractions = fractions[are_drawn] / math.fsum(fractions[are_drawn])
    if drawn_fractions.min() * MAX_WINDOW < 1:
        label = int(np.flatnonzero(are_drawn)[drawn_fractions.argmin()])
        raise InputError(
            f"fractions of the draws: class {label} would get {drawn_fractions.min():g} of them; must be 0, or at "
            f"least once in {MAX_WINDOW:,}"
        )
    class_fractions = np.zeros(len(counts))
    class_fractions[are_drawn] = drawn_fractions
    return QuotaOrder(
        classes=DrawnClasses.choose(starts, are_drawn, seed),
        drawn_by=lambda draw: draw * drawn_fractions,
        window=math.ceil(1 / drawn_fractions.min()),
        class_fractions=class_fractions,
    )


def _progressive(instance_fractions: np.ndarray, num_draws: int) -> Callable[[int], np.ndarray]:
    """Integral of ``(1 - t / T) * n_c / N + t / T / C`` over draws; class-balanced after the last draw T."""
    balanced_fraction = 1 / len(instance_fractions)

    def drawn_by(draw: int) -> np.ndarray:
        changing, after = min(draw, num_draws), max(draw - num_draws, 0)
        drift = (balanced_fraction - instance_fractions) * (changing * changing / (2 * num_draws))
        return changing * instance_fractions + drift + after * balanced_fraction

    return drawn_by
