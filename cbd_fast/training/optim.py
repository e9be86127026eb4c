"""SGD and its learning rate."""

import math

import torch
from torch import nn

from cbd_fast.config.sections import Optimization


def make_optimizer(model: nn.Module, settings: Optimization) -> torch.optim.SGD:
    """SGD with momentum; weight decay on every trainable parameter, normalisation included, as in the paper's code."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.SGD(
        parameters, lr=settings.learning_rate, momentum=settings.momentum, weight_decay=settings.weight_decay
    )


def cosine_learning_rate(peak: float, step: int, num_steps: int) -> float:
    """``peak * (1 + cos(pi * step / num_steps)) / 2`` for the update of ``step`` = 0, 1, ...; no warm-up.

    Source: Loshchilov and Hutter, ICLR 2017, without restarts.
    """
    return peak * 0.5 * (1 + math.cos(math.pi * step / num_steps))
