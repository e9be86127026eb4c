"""A finished model for the images of ``image_folder``."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cbd_fast import Loader, Predictor
from cbd_fast.config.schema import Config
from cbd_fast.inference.predictor import Prediction
from cbd_fast.shards.manifest import read_manifest
from cbd_fast.training.checkpoint import save_weights
from cbd_fast.training.model_folder import make_model_card, write_model_card
from cbd_fast.training.models import build_model


@pytest.fixture(scope="session")
def model_folder(photo_shards, tmp_path_factory) -> Path:
    """A model whose batch-norms have statistics as after training, and whose answers differ between images."""
    return write_model(tmp_path_factory.mktemp("run") / "student", photo_shards)


def write_model(folder: Path, shards: Path, **settings) -> Path:
    manifest = read_manifest(shards)
    config = Config.model_validate(
        {
            "output": str(folder.parent),
            "data": {"shards": str(shards), "num_classes": 3, "image_size": 32, "augmentation": {"mean": [0.4] * 3}},
            "model": {"backbone": "small_convnet"},
            "optimization": {"steps": 1},
            **settings,
        }
    )
    torch.manual_seed(0)
    model = build_model("small_convnet", 3, target_dim=96)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    with torch.no_grad(), Loader(shards, sampling="sequential", image_size=32, device="cpu") as loader:
        batch = loader.batch(0)  # all that there are
        features = model.eval().embed(batch.images)
        means = torch.stack([features[batch.labels == label].mean(dim=0) for label in range(3)], dim=1)
        model.weight.copy_(means - means.mean(dim=1, keepdim=True))  # the classes differ, and so do the answers
    card = make_model_card(
        model,
        config,
        name="student",
        stage="student",
        classes=manifest.classes,
        train_counts=manifest.splits["train"].class_counts,
        training={"num_steps": 1},
    )
    folder.mkdir(parents=True)
    save_weights(folder / "model.safetensors", model)
    write_model_card(folder, card)
    return folder


@pytest.fixture(scope="module", params=["torch", "dali"])
def predictor(request, model_folder):
    with Predictor(model_folder, device="cpu", batch_size=4, decoder=request.param) as predictor:
        assert predictor.decoder == request.param
        yield predictor


@pytest.fixture(scope="module")
def pixels(photos) -> list[np.ndarray]:
    """Pieces of photographs of several sizes, ``(H, W, 3)`` uint8."""
    corners = [(9 * number, 31 * number, 200 + 40 * number) for number in range(6)]
    return [photos[top % 2][top:, left:right].copy() for top, left, right in corners]


@pytest.fixture(scope="module")
def files(image_folder) -> list[str]:
    """The paths of all images, not in their order in the shards."""
    return sorted(map(str, image_folder.glob("*/*/*.*")), reverse=True)


def png(image: Image.Image | np.ndarray, image_format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, image_format, **options)
    return buffer.getvalue()


def assert_alike(predictions: list[Prediction], expected: list[Prediction], tolerance: float = 1e-5) -> None:
    assert len(predictions) == len(expected)
    for ours, theirs in zip(predictions, expected, strict=True):
        assert (ours.error, theirs.error) == (None, None)
        assert ours.labels == theirs.labels
        assert ours.classes == theirs.classes
        np.testing.assert_allclose(ours.probabilities, theirs.probabilities, atol=tolerance)
