"""The loops of the Loader's docstring; that with Lightning is examples/lightning_loop.py."""

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from cbd_fast import Augmentation, Loader

NUM_EPOCHS = 6


def make_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(3 * 8 * 8, 10))
    return model, torch.optim.SGD(model.parameters(), lr=0.5)


@pytest.fixture
def options(digits_shards):
    return {
        "shards": digits_shards,
        "sampling": "class_balanced",
        "batch_size": 64,
        "image_size": 32,
        "augmentation": Augmentation(crop="pad_and_crop", flip=False),
    }


def test_a_plain_loop(options):
    model, optimizer = make_model()
    losses = []
    with Loader(**options, device="cpu") as loader:
        for _ in range(NUM_EPOCHS):
            for images, labels in loader:
                loss = F.cross_entropy(model(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        assert len(losses) == NUM_EPOCHS * len(loader)
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_a_loop_with_accelerate(options):
    model, optimizer = make_model()
    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(model, optimizer)
    losses = []
    with Loader(**options, device=accelerator.device) as loader:
        for _ in range(NUM_EPOCHS):
            for images, labels in loader:
                loss = F.cross_entropy(model(images), labels)
                optimizer.zero_grad()
                accelerator.backward(loss)
                optimizer.step()
                losses.append(loss.item())
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
