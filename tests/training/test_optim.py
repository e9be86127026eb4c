import pytest
import torch
from torch import nn

from cbd_fast.config.sections import Optimization
from cbd_fast.training.optim import cosine_learning_rate, make_optimizer


def test_cosine_by_hand():
    rates = [cosine_learning_rate(0.2, step, 4) for step in range(5)]
    assert rates == pytest.approx([0.2, 0.1 + 0.1 * 2**-0.5, 0.1, 0.1 - 0.1 * 2**-0.5, 0.0])


def test_learning_rate_scales_with_the_batch():
    assert Optimization(epochs=1, global_batch=512, base_learning_rate=0.1).learning_rate == pytest.approx(0.2)


def test_two_steps_of_sgd_by_hand():
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(1.0)
    settings = Optimization(epochs=1, global_batch=256, base_learning_rate=0.1, momentum=0.9, weight_decay=0.5)
    optimizer = make_optimizer(model, settings)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.tensor([[2.0]])).backward()  # gradient 2
        optimizer.step()
    # v = 2 + 0.5 = 2.5, w = 0.75; v = 0.9 * 2.5 + 2 + 0.375 = 4.625, w = 0.2875
    assert model.weight.item() == pytest.approx(0.2875)


def test_weight_decay_is_on_normalisation_too_and_frozen_parameters_are_left_out():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2).requires_grad_(False))
    optimizer = make_optimizer(model, Optimization(epochs=1))
    (group,) = optimizer.param_groups
    assert len(group["params"]) == 4
    assert group["weight_decay"] == 2.5e-4
    assert not group["nesterov"]
