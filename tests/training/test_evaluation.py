import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from cbd_fast import Loader
from cbd_fast.training.evaluation import count_correct, per_class_accuracy, summarize
from cbd_fast.training.models import Output


def test_metrics_by_hand():
    train_counts = np.array([200, 50, 10, 5])
    # images, first guesses, among five: classes of 10, 20, 4 and none
    counts = np.array([[10, 20, 4, 0], [9, 10, 1, 0], [10, 15, 2, 0]])
    evaluation = summarize(counts, train_counts)
    assert evaluation.top1 == pytest.approx(100 * 20 / 34)
    assert evaluation.top5 == pytest.approx(100 * 27 / 34)
    assert evaluation.per_class_mean == pytest.approx((90 + 50 + 25) / 3)
    assert (evaluation.many, evaluation.medium, evaluation.few) == (90, 50, 25)
    assert np.isnan(per_class_accuracy(counts)[3])


def test_what_is_not_there_is_none():
    evaluation = summarize(np.zeros((3, 2), np.int64), np.array([5, 5]))
    assert set(evaluation.to_dict().values()) == {None}
    only_few = summarize(np.array([[2, 2], [1, 2], [2, 2]]), np.array([5, 5]))
    assert (only_few.many, only_few.medium, only_few.few) == (None, None, 75)


class ByBrightness(nn.Module):
    """Guesses from an image's mean; with dropout, to see that it is in eval mode."""

    def __init__(self, num_classes):
        super().__init__()
        self.classes = torch.linspace(0.2, 0.8, num_classes)
        self.dropout = nn.Dropout(0.5)

    def forward(self, images):
        brightness = self.dropout(images.mean(dim=(1, 2, 3)))
        return Output(brightness[:, None], -(brightness[:, None] - self.classes).abs())


def test_counts_every_image_once(photo_shards):
    model = ByBrightness(3).train()
    options = {"sampling": "sequential", "batch_size": 4, "image_size": 32, "device": "cpu"}
    with Loader(photo_shards, **options) as loader:
        counts = count_correct(model, loader, Accelerator(cpu=True))
        expected = np.zeros((3, 3), np.int64)
        for batch in loader:
            guesses = model.eval()(batch.images).logits.argsort(dim=1, descending=True)
            for label, guess in zip(batch.labels.tolist(), guesses.tolist(), strict=True):
                expected[:, label] += [1, guess[0] == label, label in guess[:5]]
    np.testing.assert_array_equal(counts, expected)
    assert counts[0].tolist() == [12, 5, 2]
    assert counts[2].tolist() == [12, 5, 2]  # three classes are all among five guesses


def test_training_mode_is_given_back(photo_shards):
    model = ByBrightness(3).train()
    with Loader(photo_shards, sampling="sequential", batch_size=4, image_size=8, device="cpu") as loader:
        count_correct(model, loader, Accelerator(cpu=True))
    assert model.training
