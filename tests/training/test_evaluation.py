import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from cbd_fast import Loader
from cbd_fast.training.evaluation import predict_split
from cbd_fast.training.models import Output


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
        counts = predict_split(model, loader, Accelerator(cpu=True)).counts
        expected = np.zeros((3, 3), np.int64)
        for batch in loader:
            guesses = model.eval()(batch.images).logits.argsort(dim=1, descending=True)
            for label, guess in zip(batch.labels.tolist(), guesses.tolist(), strict=True):
                expected[:, label] += [1, guess[0] == label, label in guess[:5]]
    np.testing.assert_array_equal(counts, expected)
    assert counts[0].tolist() == [12, 5, 2]
    assert counts[2].tolist() == [12, 5, 2]  # three classes are all among five guesses


def test_guesses_and_probabilities_of_every_image(photo_shards):
    model = ByBrightness(3).eval()
    with Loader(photo_shards, sampling="sequential", batch_size=4, image_size=32, device="cpu") as loader:
        predictions = predict_split(model, loader, Accelerator(cpu=True))
        expected = torch.cat([model(batch.images).logits.softmax(dim=1) for batch in loader])
    assert predictions.indices.tolist() == list(range(19))
    for index, (guesses, probabilities) in enumerate(zip(predictions.guesses, predictions.probabilities, strict=True)):
        assert sorted(guesses) == [0, 1, 2]
        assert probabilities.tolist() == pytest.approx(expected[index][guesses].tolist())
        assert (np.diff(probabilities) <= 0).all()
    assert predictions.train_counts.tolist() == [12, 5, 2]


def test_training_mode_is_given_back(photo_shards):
    model = ByBrightness(3).train()
    with Loader(photo_shards, sampling="sequential", batch_size=4, image_size=8, device="cpu") as loader:
        predict_split(model, loader, Accelerator(cpu=True))
    assert model.training
