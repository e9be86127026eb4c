"""Long tails made of balanced sets: how many images of each class, and which."""

import hashlib
import os
from dataclasses import dataclass

import numpy as np

KINDS = ("exp", "step")

# The field's limits since Liu et al., "Large-Scale Long-Tailed Recognition in an Open World" (CVPR 2019).
MANY_MORE_THAN, FEW_LESS_THAN = 100, 20


@dataclass(frozen=True, kw_only=True)
class LongTail:
    """The long tail that was asked for.

    Attributes:
        imbalance: images of the largest class for one of the smallest, at least 1.
        kind: ``exp`` falls exponentially, ``step`` has two halves.
        num_val_per_class: how many of the images of each class that are left out of training become the split ``val``.
    """

    imbalance: float
    kind: str = "exp"
    num_val_per_class: int = 0

    def counts(self, num_largest: int, num_classes: int) -> list[int]:
        """Training images of every class.

        Args:
            num_largest: images of the largest class.
            num_classes: number of classes.
        """
        make_counts = exponential_counts if self.kind == "exp" else step_counts
        return make_counts(num_largest, num_classes, self.imbalance)


def exponential_counts(num_largest: int, num_classes: int, imbalance: float) -> list[int]:
    """``floor(n_max * F ** (-c / (C - 1)))`` images of class c (Cui et al., CVPR 2019)."""
    last = max(num_classes - 1, 1)
    # the small term keeps exact results such as 500 / 100 from being rounded to 4
    return [int(num_largest * imbalance ** (-c / last) + 1e-9) for c in range(num_classes)]


def step_counts(num_largest: int, num_classes: int, imbalance: float) -> list[int]:
    """``n_max`` images in the first half of the classes, ``floor(n_max / F)`` in the rest (Buda et al., 2018)."""
    num_frequent = num_classes // 2
    return [num_largest] * num_frequent + [int(num_largest / imbalance + 1e-9)] * (num_classes - num_frequent)


def order_key(purpose: str, seed: int, name: bytes) -> bytes:
    """Sorting by this key shuffles images, as a function of the purpose, the seed and each one's name alone.

    Removing an image moves none of the others, and the order in which a file system lists them does not matter.
    """
    return hashlib.blake2b(f"{purpose}\0{seed}\0".encode() + name, digest_size=16).digest()


def choice_key(seed: int, name: str) -> tuple[bytes, str]:
    """Images of a class are chosen in the order of this key."""
    return order_key("choose", seed, os.fsencode(name)), name


def frequency_groups(train_counts: np.ndarray) -> dict[str, np.ndarray]:
    """Which classes are frequent in training.

    Args:
        train_counts: ``(num_classes,)`` training images per class.

    Returns:
        ``many`` (more than 100), ``medium`` (20 to 100) and ``few`` (fewer than 20), each ``(num_classes,)`` bool.
    """
    counts = np.asarray(train_counts)
    many, few = counts > MANY_MORE_THAN, counts < FEW_LESS_THAN
    return {"many": many, "medium": ~many & ~few, "few": few}
