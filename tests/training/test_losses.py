import math

import torch

from cbd_fast.training.losses import distillation_loss, student_losses, teacher_losses
from cbd_fast.training.models import Output

# two images of three classes
LOGITS = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
FEATURES = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
TARGET = torch.tensor([[0.0, 1.0], [0.8, 0.6]])
LABELS = torch.tensor([2, 0])

CROSS_ENTROPY = (math.log(math.exp(-2) + math.exp(-1) + 1) + math.log(3)) / 2
DISTILLATION = ((1 - 0) + (1 - 0.96)) / 2  # cosines 0 and 0.6 * 0.8 + 0.8 * 0.6


def test_distillation_by_hand():
    torch.testing.assert_close(distillation_loss(FEATURES, TARGET), torch.tensor(DISTILLATION))
    torch.testing.assert_close(distillation_loss(TARGET, TARGET), torch.tensor(0.0))
    torch.testing.assert_close(distillation_loss(-TARGET, TARGET), torch.tensor(2.0))


def test_teacher_by_hand():
    losses = teacher_losses(Output(FEATURES, LOGITS), LABELS)
    torch.testing.assert_close(losses["loss"], torch.tensor(CROSS_ENTROPY))


def test_student_by_hand():
    losses = student_losses(Output(FEATURES, LOGITS), LABELS, TARGET, alpha=0.4, beta=100)
    torch.testing.assert_close(losses["classification_loss"], torch.tensor(CROSS_ENTROPY))
    torch.testing.assert_close(losses["distillation_loss"], torch.tensor(DISTILLATION))
    torch.testing.assert_close(losses["loss"], torch.tensor(0.6 * CROSS_ENTROPY + 0.4 * 100 * DISTILLATION))


def test_gradient_of_distillation_by_hand():
    features = FEATURES.clone().requires_grad_()
    distillation_loss(features, TARGET).backward()
    torch.testing.assert_close(features.grad, -TARGET / 2)
