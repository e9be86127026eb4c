"""The losses of both stages, in float32.

A registered loss is called with keyword arguments, of which it takes those that it needs (the rest go to ``**_``):

    output: what the model made of ``B`` images, an ``Output``.
    labels: ``(B,)`` int64.
    target: ``(B, D)`` float32 features of the teachers, each of length 1; None without teachers.
    class_counts: ``(num_classes,)`` float32 training images of each class, at least 1.
    progress: how far training is, from 0 at the first step to 1 after the last.

It returns a scalar, the mean over the images. Further parameters with defaults are options (``loss_options``).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from cbd_fast.registry import LOSSES
from cbd_fast.training.models import Output


@LOSSES.register("cross_entropy")
def cross_entropy(*, output: Output, labels: Tensor, **_: object) -> Tensor:
    """Cross-entropy, as in the paper."""
    return F.cross_entropy(output.logits, labels)


@LOSSES.register("balanced_softmax")
def balanced_softmax(*, output: Output, labels: Tensor, class_counts: Tensor, **_: object) -> Tensor:
    """Cross-entropy of ``logits + log(n_c)``.

    Source: Ren et al., Balanced Meta-Softmax for Long-Tailed Visual Recognition, NeurIPS 2020, equation 3.
    """
    return F.cross_entropy(output.logits + class_counts.log(), labels)


@LOSSES.register("logit_adjustment")
def logit_adjustment(*, output: Output, labels: Tensor, class_counts: Tensor, tau: float = 1.0, **_: object) -> Tensor:
    """Cross-entropy of ``logits + tau * log(prior of the class)``; tau 1 is the consistent one.

    With tau 1 it is balanced softmax: the two differ by a constant that the softmax does not see.

    Source: Menon et al., Long-Tail Learning via Logit Adjustment, ICLR 2021, equation 10.
    """
    return F.cross_entropy(output.logits + tau * (class_counts / class_counts.sum()).log(), labels)


@LOSSES.register("cosine_distance")
def cosine_distance(*, output: Output, target: Tensor, **_: object) -> Tensor:
    """Distillation: ``mean(1 - cos(features, target))``, as in the paper."""
    return distillation_loss(output.features, target)


def distillation_loss(features: Tensor, target: Tensor) -> Tensor:
    """``mean(1 - cos(features, target))``.

    Args:
        features: ``(B, D)``, each of length 1.
        target: ``(B, D)``, each of length 1.

    Returns:
        A scalar in 0..2.
    """
    return 1 - (features * target).sum(dim=1).mean()


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What a model is trained to lower: a loss on the labels and, with teachers, one on the features.

    ``loss = (1 - alpha) * classification + alpha * beta * distillation`` after the official code of Class-Balanced
    Distillation; without teachers ``loss = classification``.

    Attributes:
        classification: name of the loss on the labels, in ``LOSSES``.
        options: options of that loss.
        distillation: name of the loss on the features; None without teachers.
        alpha: weight of distillation, 0 to 1.
        beta: factor of distillation.
        class_counts: ``(num_classes,)`` float32 training images of each class, on the model's device.
    """

    classification: str = "cross_entropy"
    options: Mapping[str, float] = field(default_factory=dict)
    distillation: str | None = None
    alpha: float = 0.4
    beta: float = 100.0
    class_counts: Tensor | None = None

    def to(self, device: torch.device) -> "Objective":
        """The same with its counts on a device."""
        return self if self.class_counts is None else replace(self, class_counts=self.class_counts.to(device))

    def __call__(
        self, output: Output, labels: Tensor, target: Tensor | None = None, progress: float = 0.0
    ) -> dict[str, Tensor]:
        """``loss`` and its parts, not yet weighted: scalars by name."""
        counts = self.class_counts
        given = {"output": output, "labels": labels, "target": target, "class_counts": counts, "progress": progress}
        loss_on_labels: Callable[..., Tensor] = LOSSES[self.classification]
        classification = loss_on_labels(**given, **self.options)
        if self.distillation is None:
            return {"loss": classification, "classification_loss": classification}
        distillation = LOSSES[self.distillation](**given)
        return {
            "loss": (1 - self.alpha) * classification + self.alpha * self.beta * distillation,
            "classification_loss": classification,
            "distillation_loss": distillation,
        }


def as_class_counts(counts: Sequence[int]) -> Tensor:
    """``(num_classes,)`` float32 training images of each class, at least 1, as losses are given them."""
    return torch.tensor(counts, dtype=torch.float32).clamp(min=1)
