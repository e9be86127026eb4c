import math

import pytest
import torch

from cbd_fast.config.schema import Config
from cbd_fast.registry import LOSSES
from cbd_fast.training.losses import Objective, as_class_counts, distillation_loss
from cbd_fast.training.models import Output
from tests.helpers import registered

# two images of three classes
LOGITS = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
FEATURES = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
TARGET = torch.tensor([[0.0, 1.0], [0.8, 0.6]])
LABELS = torch.tensor([2, 0])

CROSS_ENTROPY = (math.log(math.exp(-2) + math.exp(-1) + 1) + math.log(3)) / 2
STUDENT = Objective(distillation="cosine_distance", alpha=0.4, beta=100.0)
DISTILLATION = ((1 - 0) + (1 - 0.96)) / 2  # cosines 0 and 0.6 * 0.8 + 0.8 * 0.6


def test_distillation_by_hand():
    torch.testing.assert_close(distillation_loss(FEATURES, TARGET), torch.tensor(DISTILLATION))
    torch.testing.assert_close(distillation_loss(TARGET, TARGET), torch.tensor(0.0))
    torch.testing.assert_close(distillation_loss(-TARGET, TARGET), torch.tensor(2.0))


def test_teacher_by_hand():
    losses = Objective()(Output(FEATURES, LOGITS), LABELS)
    torch.testing.assert_close(losses["loss"], torch.tensor(CROSS_ENTROPY))


def test_student_by_hand():
    losses = STUDENT(Output(FEATURES, LOGITS), LABELS, TARGET)
    torch.testing.assert_close(losses["classification_loss"], torch.tensor(CROSS_ENTROPY))
    torch.testing.assert_close(losses["distillation_loss"], torch.tensor(DISTILLATION))
    torch.testing.assert_close(losses["loss"], torch.tensor(0.6 * CROSS_ENTROPY + 0.4 * 100 * DISTILLATION))


def test_gradient_of_distillation_by_hand():
    features = FEATURES.clone().requires_grad_()
    distillation_loss(features, TARGET).backward()
    torch.testing.assert_close(features.grad, -TARGET / 2)


COUNTS = as_class_counts([90, 9, 0])  # a class without images counts as one of a single image


def test_balanced_softmax_by_hand():
    loss = Objective(classification="balanced_softmax", class_counts=COUNTS)(Output(FEATURES, LOGITS), LABELS)["loss"]
    first = math.log(90 * math.exp(1 - 3) + 9 * math.exp(2 - 3) + 1)  # of the third class, whose count is 1
    second = math.log((90 + 9 + 1) / 90)
    torch.testing.assert_close(loss, torch.tensor((first + second) / 2))


@pytest.mark.parametrize("tau", [1.0, 0.5])
def test_logit_adjustment_by_hand(tau):
    adjusted = Objective(classification="logit_adjustment", options={"tau": tau}, class_counts=COUNTS)
    first = math.log(90**tau * math.exp(1 - 3) + 9**tau * math.exp(2 - 3) + 1)
    second = math.log((90**tau + 9**tau + 1) / 90**tau)
    torch.testing.assert_close(adjusted(Output(FEATURES, LOGITS), LABELS)["loss"], torch.tensor((first + second) / 2))


def test_logit_adjustment_of_tau_1_is_balanced_softmax():
    output = Output(FEATURES, LOGITS)
    losses = [Objective(classification=name, class_counts=COUNTS)(output, LABELS)["loss"] for name in BALANCED]
    torch.testing.assert_close(*losses)


BALANCED = ("balanced_softmax", "logit_adjustment")


@pytest.fixture
def own_loss():
    seen = []

    def own(*, output, labels, target=None, class_counts, progress=0.0, factor=1.0):
        """What a user wrote."""
        seen.append((target, class_counts, progress))
        return factor * output.logits.sum()

    with registered(LOSSES, "own", own):
        yield seen


def test_a_loss_of_the_user_is_given_all_there_is(own_loss):
    objective = Objective(
        classification="own", options={"factor": 2.0}, distillation="own", alpha=0.25, beta=4.0, class_counts=COUNTS
    )
    losses = objective(Output(FEATURES, LOGITS), LABELS, TARGET, 0.75)
    total = LOGITS.sum().item()
    assert losses["classification_loss"].item() == 2 * total
    assert losses["loss"].item() == pytest.approx(0.75 * 2 * total + 0.25 * 4 * total)
    assert own_loss == [(TARGET, COUNTS, 0.75)] * 2


def config_with(**stage_one) -> Config:
    data = {"shards": "s", "num_classes": 3}
    return Config.model_validate({"output": "o", "data": data, "optimization": {"steps": 1}, "stage_one": stage_one})


def test_losses_are_settings(own_loss):
    assert config_with(loss="own", loss_options={"factor": 3}).stage_one.loss == "own"
    with pytest.raises(ValueError, match=r"must be one of cross_entropy, .*, not 'focal'"):
        config_with(loss="focal")
    with pytest.raises(ValueError, match="loss_options 'taw': logit_adjustment has no such option, only tau"):
        config_with(loss="logit_adjustment", loss_options={"taw": 1.0})
    with pytest.raises(ValueError, match="cosine_distance: needs the teachers' features, so it can only be"):
        config_with(loss="cosine_distance")
    with pytest.raises(ValueError, match="loss_options 'progress': own has no such option, only factor"):
        config_with(loss="own", loss_options={"progress": 1.0})
    with pytest.raises(ValueError, match="loss_options 'tau': cross_entropy has no options"):
        config_with(loss="cross_entropy", loss_options={"tau": 1.0})
