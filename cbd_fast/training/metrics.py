"""Metrics: what the guesses of a model on a split are worth, in percent.

A registered metric is a function of ``Predictions`` that returns percent, or None where there is nothing to measure.
"""

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cbd_fast.registry import METRICS
from cbd_fast.shards.long_tail import frequency_groups


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """The guesses of a model on the N images of a split.

    Attributes:
        indices: ``(N,)`` int64, the images as numbers in the index, ascending.
        labels: ``(N,)`` int64.
        guesses: ``(N, k)`` int64 classes, the likeliest first; k is 5, or the number of classes if that is less.
        probabilities: ``(N, k)`` float32, the softmax of the guesses' logits.
        train_counts: ``(num_classes,)`` int64 training images of each class.
    """

    indices: np.ndarray
    labels: np.ndarray
    guesses: np.ndarray
    probabilities: np.ndarray
    train_counts: np.ndarray

    @cached_property
    def counts(self) -> np.ndarray:
        """``(3, num_classes)`` int64: images, correct first guesses, correct among the first five."""
        hits = self.guesses == self.labels[:, None]
        masks = (np.ones(len(self.labels), bool), hits[:, 0], hits.any(axis=1))
        return np.stack([np.bincount(self.labels[mask], minlength=len(self.train_counts)) for mask in masks])

    @property
    def num_guessed(self) -> np.ndarray:
        """``(num_classes,)`` int64 images that were taken for each class."""
        return np.bincount(self.guesses[:, 0], minlength=len(self.train_counts))


def evaluate(predictions: Predictions, names: Iterable[str]) -> dict[str, float | None]:
    """Registered metrics by name, in percent; None where there is nothing to measure, or no number comes out."""
    values = {name: METRICS[name](predictions) for name in names}
    odd = {name: value for name, value in values.items() if value is not None and not math.isfinite(value)}
    if odd:
        warnings.warn(f"metrics that are no numbers count as not measured: {odd}", stacklevel=2)
    # a number of NumPy's, which a user's metric is likely to return, would be none for JSON
    return {name: None if value is None or name in odd else float(value) for name, value in values.items()}


def per_class_accuracy(counts: np.ndarray) -> np.ndarray:
    """``(3, num_classes)`` counts to ``(num_classes,)`` top-1 accuracy in percent; NaN for classes without images."""
    with np.errstate(invalid="ignore"):
        return 100 * counts[1] / counts[0]


@METRICS.register("top1")
def top1(predictions: Predictions) -> float | None:
    """Correct first guesses, of all images."""
    return _of_all(predictions, 1)


@METRICS.register("top5")
def top5(predictions: Predictions) -> float | None:
    """Images whose class is among the first five guesses."""
    return _of_all(predictions, 2)


@METRICS.register("per_class_mean")
def per_class_mean(predictions: Predictions) -> float | None:
    """Top-1 accuracy of each class, averaged over the classes that have images (balanced accuracy)."""
    return _mean(per_class_accuracy(predictions.counts))


@METRICS.register("many")
def many(predictions: Predictions) -> float | None:
    """Per-class mean over classes of more than 100 training images."""
    return _of_group(predictions, "many")


@METRICS.register("medium")
def medium(predictions: Predictions) -> float | None:
    """Per-class mean over classes of 20 to 100 training images."""
    return _of_group(predictions, "medium")


@METRICS.register("few")
def few(predictions: Predictions) -> float | None:
    """Per-class mean over classes of fewer than 20 training images."""
    return _of_group(predictions, "few")


@METRICS.register("balanced_top5")
def balanced_top5(predictions: Predictions) -> float | None:
    """Top-5 accuracy of each class, averaged over the classes that have images."""
    num_images, _, num_among_five = predictions.counts
    return _mean(per_class_accuracy(np.stack([num_images, num_among_five])))


@METRICS.register("macro_f1")
def macro_f1(predictions: Predictions) -> float | None:
    """F1 of each class, ``2 TP / (images + guesses)``, averaged over the classes that have images or guesses.

    Source: Opitz and Burst, Macro F1 and Macro F1, 2019, equation 2 (the mean of the classes' F1); the same as
    scikit-learn's ``f1_score(average="macro")``.
    """
    num_images, num_correct, _ = predictions.counts
    with np.errstate(invalid="ignore"):
        return _mean(100 * 2 * num_correct / (num_images + predictions.num_guessed))


def _of_all(predictions: Predictions, row: int) -> float | None:
    total = predictions.counts.sum(axis=1)
    return 100 * float(total[row] / total[0]) if total[0] else None


def _of_group(predictions: Predictions, group: str) -> float | None:
    members = frequency_groups(predictions.train_counts)[group]
    return _mean(per_class_accuracy(predictions.counts)[members])


def _mean(values: np.ndarray) -> float | None:
    present = values[~np.isnan(values)]
    return float(present.mean()) if len(present) else None
