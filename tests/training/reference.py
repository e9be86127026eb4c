"""The method in plain float64 NumPy, written from its formulas and apart from the package, which it must never import.

The formulas are those of the official code of Class-Balanced Distillation (Iscen et al., BMVC 2021). Gradients are
derived by hand; ``test_method.py`` proves them by finite differences before it holds the package against them.

A model is a dictionary of arrays, with shapes:

- ``pooled``: ``(B, d)``, what the backbone makes of the images, before any normalisation;
- ``weight``: ``(D, C)`` of the classifier, one column per class;
- ``projection.weight``: ``(D, d)`` and ``projection.bias``: ``(D,)``, only where several teachers are followed; else D
  is d.
"""

import math

import numpy as np

SCALE = 20.0


def unit(vectors: np.ndarray, axis: int) -> np.ndarray:
    """``x / |x|``."""
    return vectors / np.sqrt((vectors**2).sum(axis=axis, keepdims=True))


def through_unit(vectors: np.ndarray, gradient: np.ndarray, axis: int) -> np.ndarray:
    """Gradient before ``unit`` from that behind it: with z = x / |x|, dz / dx is (I - z z^T) / |x|."""
    length = np.sqrt((vectors**2).sum(axis=axis, keepdims=True))
    z = vectors / length
    return (gradient - z * (z * gradient).sum(axis=axis, keepdims=True)) / length


def teacher_target(pooled_of_teachers: list[np.ndarray]) -> np.ndarray:
    """``(B, sum of widths)``: each teacher's features of length 1, side by side, and the whole to length 1."""
    return unit(np.concatenate([unit(pooled, axis=1) for pooled in pooled_of_teachers], axis=1), axis=1)


def before_normalisation(model: dict[str, np.ndarray]) -> np.ndarray:
    """``(B, D)``: the pooled features, or ``relu(W x + b)`` of them."""
    if "projection.weight" not in model:
        return model["pooled"]
    return np.maximum(0.0, model["pooled"] @ model["projection.weight"].T + model["projection.bias"])


def features_and_logits(model: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """``(B, D)`` of length 1 and ``(B, C)``: 20 times the cosine between a feature and a class's column."""
    features = unit(before_normalisation(model), axis=1)
    return features, SCALE * features @ unit(model["weight"], axis=0)


def losses(
    model: dict[str, np.ndarray],
    labels: np.ndarray,
    target: np.ndarray | None = None,
    alpha: float = 0.0,
    beta: float = 0.0,
) -> dict[str, float]:
    """Stage one without a target: cross-entropy. Stage two: ``(1 - alpha) CE + alpha beta mean(1 - cos)``."""
    features, logits = features_and_logits(model)
    of_label = logits[np.arange(len(labels)), labels]
    highest = logits.max(axis=1)
    cross_entropy = (highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1)) - of_label).mean()
    if target is None:
        return {"loss": cross_entropy, "classification_loss": cross_entropy}
    distance = (1 - (features * target).sum(axis=1)).mean()
    return {
        "loss": (1 - alpha) * cross_entropy + alpha * beta * distance,
        "classification_loss": cross_entropy,
        "distillation_loss": distance,
    }


def gradients(
    model: dict[str, np.ndarray],
    labels: np.ndarray,
    target: np.ndarray | None = None,
    alpha: float = 0.0,
    beta: float = 0.0,
) -> dict[str, np.ndarray]:
    """Of ``losses``'s ``loss``, for every array of the model."""
    if target is None:
        alpha = 0.0
    before = before_normalisation(model)
    features, logits = features_and_logits(model)
    columns = unit(model["weight"], axis=0)
    num_images = len(labels)

    # d CE / d logits = (softmax - one hot) / B
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    by_logits = exponentials / exponentials.sum(axis=1, keepdims=True)
    by_logits[np.arange(num_images), labels] -= 1
    by_logits *= (1 - alpha) / num_images

    by_features = SCALE * by_logits @ columns.T
    if target is not None:
        by_features -= alpha * beta * target / num_images
    by_before = through_unit(before, by_features, axis=1)
    found = {"weight": through_unit(model["weight"], SCALE * features.T @ by_logits, axis=0)}
    if "projection.weight" not in model:
        return found | {"pooled": by_before}
    by_linear = by_before * (before > 0)
    return found | {
        "pooled": by_linear @ model["projection.weight"],
        "projection.weight": by_linear.T @ model["pooled"],
        "projection.bias": by_linear.sum(axis=0),
    }


def learning_rates(base: float, global_batch: int, num_steps: int) -> list[float]:
    """Of steps 0, 1, ...: from ``base * global_batch / 256`` by a cosine to zero, without warm-up."""
    peak = base * global_batch / 256
    return [peak * (1 + math.cos(math.pi * step / num_steps)) / 2 for step in range(num_steps)]


def momentum_update(
    variables: dict[str, np.ndarray],
    accumulators: dict[str, np.ndarray],
    by_loss: dict[str, np.ndarray],
    *,
    learning_rate: float,
    momentum: float,
    official_weight_decay: float,
) -> None:
    """One step in place, as the official code makes it.

    There ``0.5 * wd * sum(v^2) / 2`` of every trainable variable v is added to the loss, whose gradient is
    ``0.5 * wd * v``; an accumulator becomes ``momentum * accumulator + gradient``; and ``v -= rate * accumulator``.
    """
    for name, variable in variables.items():
        gradient = by_loss[name] + 0.5 * official_weight_decay * variable
        accumulators[name] = momentum * accumulators[name] + gradient
        variable -= learning_rate * accumulators[name]


def metrics(logits: np.ndarray, labels: np.ndarray, train_counts: np.ndarray) -> dict[str, float | None]:
    """Accuracies in percent, one image after the other; None where there is nothing to take a mean of."""
    first: dict[int, list[float]] = {label: [] for label in range(len(train_counts))}
    in_five: list[float] = []
    for scores, label in zip(logits, labels.tolist(), strict=True):
        num_better = sum(score > scores[label] for score in scores)
        first[label].append(100.0 * (num_better == 0))
        in_five.append(100.0 * (num_better < 5))
    by_class = {label: mean(hits) for label, hits in first.items() if hits}

    def of_classes(fewest: float, most: float) -> float | None:
        return mean([accuracy for label, accuracy in by_class.items() if fewest <= train_counts[label] <= most])

    return {
        "top1": mean([hit for hits in first.values() for hit in hits]),
        "top5": mean(in_five),
        "per_class_mean": mean(list(by_class.values())),
        "many": of_classes(101, math.inf),
        "medium": of_classes(20, 100),
        "few": of_classes(0, 19),
    }


def mean(percentages: list[float]) -> float | None:
    """None of nothing."""
    return sum(percentages) / len(percentages) if percentages else None
