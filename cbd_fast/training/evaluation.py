"""Exact evaluation over a whole split, with any number of processes."""

from dataclasses import asdict, dataclass

import numpy as np
import torch
from accelerate import Accelerator

from cbd_fast.loading.loader import Loader
from cbd_fast.shards.long_tail import frequency_groups
from cbd_fast.training.models import CosineModel


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Accuracies in percent; None where no class is in the group or no image in the split.

    ``per_class_mean`` and the groups are means over the accuracies of classes that have images in the split; the
    groups are by images in training.
    """

    top1: float | None
    top5: float | None
    per_class_mean: float | None
    many: float | None
    medium: float | None
    few: float | None

    def to_dict(self) -> dict[str, float | None]:
        """Name and value of each accuracy."""
        return asdict(self)


def count_correct(model: CosineModel, loader: Loader, accelerator: Accelerator) -> np.ndarray:
    """Runs a model in eval mode over every image of a sequential loader once.

    Args:
        model: not wrapped, on the loader's device, alike on all processes; best in its ``optimized_for_inference``.
        loader: with ``sampling="sequential"``; each process's own part.
        accelerator: joins the processes.

    Returns:
        ``(3, num_classes)`` int64 on every process: images, correct first guesses, correct among the first five.
    """
    num_classes = loader.shards.num_classes
    num_guesses = min(5, num_classes)
    counts = torch.zeros((3, num_classes), dtype=torch.int64, device=loader.device)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for batch in loader:
            guesses = model(batch.images).logits.topk(num_guesses, dim=1).indices
            hits = guesses == batch.labels[:, None]
            found = torch.stack([torch.ones_like(batch.labels), hits[:, 0].long(), hits.any(dim=1).long()])
            counts.index_add_(1, batch.labels, found)
    model.train(was_training)
    return accelerator.reduce(counts, "sum").cpu().numpy()


def summarize(counts: np.ndarray, train_counts: np.ndarray) -> Evaluation:
    """Accuracies from counts.

    Args:
        counts: ``(3, num_classes)``, as ``count_correct`` returns them.
        train_counts: ``(num_classes,)`` training images, which say what many, medium and few are.
    """
    accuracies = per_class_accuracy(counts)
    total = counts.sum(axis=1)
    groups = {name: _mean(accuracies[mask]) for name, mask in frequency_groups(train_counts).items()}
    return Evaluation(
        top1=100 * float(total[1] / total[0]) if total[0] else None,
        top5=100 * float(total[2] / total[0]) if total[0] else None,
        per_class_mean=_mean(accuracies),
        **groups,
    )


def per_class_accuracy(counts: np.ndarray) -> np.ndarray:
    """``(num_classes,)`` top-1 accuracy in percent; NaN for classes without images."""
    with np.errstate(invalid="ignore"):
        return 100 * counts[1] / counts[0]


def _mean(accuracies: np.ndarray) -> float | None:
    present = accuracies[~np.isnan(accuracies)]
    return float(present.mean()) if len(present) else None
