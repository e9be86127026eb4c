"""Finished models that are of no use, or of less than expected: what a person should not have to find out alone."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cbd_fast.training.metrics import per_class_accuracy
from cbd_fast.training.model_folder import read_model_card

NUM_DEVIATIONS = 3  # from the accuracy of guessing, within which a model's is taken for guessing
MAX_RATIO = 1.5  # to the accuracy of guessing, beyond which it is not, however few images were tested
MIN_POINTS = 0.05  # less is not seen in a table


def doubts(results: Mapping[str, Mapping[str, Any]], others: Mapping[str, float] | None = None) -> list[str]:
    """A line on each model that does no better than guessing, and on a student that does worse than its teachers.

    Args:
        results: of the finished models by name, as ``result.json`` has them.
        others: mean accuracy of the classes in percent of teachers of other runs, by name.
    """
    counts = {name: np.array(result["counts"]) for name, result in results.items() if np.sum(result["counts"])}
    means = {name: float(np.nanmean(per_class_accuracy(counted))) for name, counted in counts.items()}
    lines = [
        f"{name}: no better than guessing ({means[name]:.1f} % of the images of each class on average, "
        f"{guessing_accuracy(counted):.1f} % by chance); its optimization.base_learning_rate may be too high, or its "
        "training too short"
        for name, counted in counts.items()
        if means[name] <= _max_by_guessing(counted)
    ]
    teachers = {name: mean for name, mean in means.items() if name != "student"} | dict(others or {})
    if teachers and "student" in means:
        best = max(teachers, key=lambda name: teachers[name])
        if means["student"] < teachers[best] - MIN_POINTS:
            lines.append(
                f"student: worse than {best} ({means['student']:.1f} % of the images of each class on average, "
                f"{best} {teachers[best]:.1f} %); it should be better: compare their losses in metrics.jsonl"
            )
    return lines


def accuracies_elsewhere(folders: Iterable[Path], fingerprint: str) -> dict[str, float]:
    """Mean accuracy of the classes in percent of finished models that were evaluated on the same images, by folder.

    Args:
        folders: of the models.
        fingerprint: of the shards.
    """
    found = {}
    for folder in folders:
        training = read_model_card(folder).training
        metrics = training.get("metrics")
        mean = metrics.get("per_class_mean") if isinstance(metrics, dict) else None
        if training.get("shards") == fingerprint and isinstance(mean, int | float):
            found[str(folder)] = float(mean)
    return found


def guessing_accuracy(counts: np.ndarray) -> float:
    """Accuracy in percent of a model that knows nothing, of ``(3, num_classes)`` counts."""
    return 100 / counts.shape[1]


def _max_by_guessing(counts: np.ndarray) -> float:
    """The highest mean accuracy of the classes, in percent, that is taken for guessing."""
    chance, num_images = guessing_accuracy(counts) / 100, counts[0][counts[0] > 0]
    deviation = np.sqrt((chance * (1 - chance) / num_images).sum()) / len(num_images)
    return 100 * min(chance + NUM_DEVIATIONS * deviation, MAX_RATIO * chance)
