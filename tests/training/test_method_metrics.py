"""Metrics of an evaluation against plain NumPy."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cbd_fast.training.evaluation import predict_split
from cbd_fast.training.metrics import evaluate
from cbd_fast.training.models import Output
from tests.training import reference


class Answers(nn.Module):
    """A model to which each image is its own logits."""

    def forward(self, images):
        return Output(images, images)


class Batches(list):
    """As much of a loader as an evaluation needs."""

    def __init__(self, logits, labels, train_counts, size=4):
        cuts = range(0, len(labels), size)
        super().__init__(
            SimpleNamespace(
                images=torch.from_numpy(logits[at : at + size]),
                labels=torch.from_numpy(labels[at : at + size]),
                ids=torch.arange(at, min(at + size, len(labels))),
            )
            for at in cuts
        )
        self.shards = SimpleNamespace(num_classes=logits.shape[1], train_counts=np.asarray(train_counts))
        self.device = torch.device("cpu")


def evaluated(logits, labels, train_counts):
    predictions = predict_split(Answers(), Batches(logits, labels, train_counts), Accelerator(cpu=True))
    return evaluate(predictions, ("top1", "top5", "per_class_mean", "many", "medium", "few"))


def test_metrics_by_hand():
    # class: training images, group, test images, right
    # 0: 101, many, 2 of 2; 1: 100, medium, 1 of 2; 2: 20, medium, 0 of 2; 3: 19, few, 1 of 1; 4: 0, few, none;
    # 5: 5000, many, 0 of 1, whose own logit is the lowest of six
    train_counts = np.array([101, 100, 20, 19, 0, 5000])
    labels = np.array([0, 0, 1, 1, 2, 2, 3, 5])
    guesses = np.array([0, 0, 1, 0, 3, 3, 3, 0])
    logits = np.tile(np.array([0.5, 0.4, 0.3, 0.2, 0.1, 0.0], np.float32), (8, 1))
    logits[np.arange(8), guesses] = 1
    expected = {
        "top1": 100 * 4 / 8,
        "top5": 100 * 7 / 8,
        "per_class_mean": (100 + 50 + 0 + 100 + 0) / 5,
        "many": (100 + 0) / 2,
        "medium": (50 + 0) / 2,
        "few": 100.0,
    }
    assert reference.metrics(logits, labels, train_counts) == pytest.approx(expected)
    assert evaluated(logits, labels, train_counts) == pytest.approx(expected)


@settings(max_examples=100, deadline=None)
@given(
    train_counts=st.lists(st.sampled_from([0, 1, 19, 20, 21, 99, 100, 101, 5000]), min_size=1, max_size=9),
    num_images=st.integers(0, 25),
    seed=st.integers(0, 2**32 - 1),
)
def test_metrics(train_counts, num_images, seed):
    rng = np.random.default_rng(seed)
    num_classes = len(train_counts)
    labels = rng.integers(num_classes, size=num_images)
    # no two alike in a row, so that the order of guesses is beyond doubt
    logits = rng.permuted(np.tile(np.arange(num_classes, dtype=np.float32), (num_images, 1)), axis=1)
    expected = reference.metrics(logits, labels, np.array(train_counts))
    found = evaluated(logits, labels, np.array(train_counts))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == (None if value is None else pytest.approx(value)), name
    if num_images and num_classes <= 5:
        assert found["top5"] == 100
