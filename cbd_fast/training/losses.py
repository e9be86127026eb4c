"""The losses of both stages, in float32, after the official code of Class-Balanced Distillation."""

import torch.nn.functional as F
from torch import Tensor

from cbd_fast.training.models import Output


def distillation_loss(features: Tensor, target: Tensor) -> Tensor:
    """``mean(1 - cos(features, target))``.

    Args:
        features: ``(B, D)``, each of length 1.
        target: ``(B, D)``, each of length 1.

    Returns:
        A scalar in 0..2.
    """
    return 1 - (features * target).sum(dim=1).mean()


def teacher_losses(output: Output, labels: Tensor) -> dict[str, Tensor]:
    """ModelSetup one: cross-entropy.

    Args:
        output: of the model.
        labels: ``(B,)`` int64.

    Returns:
        ``loss``, a scalar, and its parts.
    """
    classification = F.cross_entropy(output.logits, labels)
    return {"loss": classification, "classification_loss": classification}


def student_losses(output: Output, labels: Tensor, target: Tensor, *, alpha: float, beta: float) -> dict[str, Tensor]:
    """ModelSetup two: ``(1 - alpha) * cross_entropy + alpha * beta * distillation``.

    Args:
        output: of the student.
        labels: ``(B,)`` int64.
        target: ``(B, D)`` features of the teachers, each of length 1.
        alpha: weight of distillation, 0 to 1.
        beta: its factor.

    Returns:
        ``loss``, a scalar, and its parts, not yet weighted.
    """
    classification = F.cross_entropy(output.logits, labels)
    distillation = distillation_loss(output.features, target)
    return {
        "loss": (1 - alpha) * classification + alpha * beta * distillation,
        "classification_loss": classification,
        "distillation_loss": distillation,
    }
