"""``load_model(folder)``: a finished model, ready to use."""

from pathlib import Path
from typing import Any

import torch

from cbd_fast.loading.augment import Augmentation
from cbd_fast.system import choose_device
from cbd_fast.training.model_folder import ModelCard, build_backbone, check_shapes, read_model_card, read_weights
from cbd_fast.training.models import CosineModel


class TrainedModel(CosineModel):
    """A finished model, which knows what it tells apart and how it wants to see images.

    ``model(images)`` takes ``(B, 3, image_size, image_size)`` float32 in [0, 1], with ``preprocessing.mean`` subtracted
    and divided by ``preprocessing.std`` if these are set, and returns ``Output(features, logits)``. The names of its
    weights are those of the ``CosineModel`` that was trained. ``Predictor`` takes files in place of tensors.

    Attributes:
        card: all that its ``config.json`` says.
    """

    def __init__(self, card: ModelCard) -> None:
        """Fresh weights, as ``card`` describes them."""
        super().__init__(*build_backbone(card), card.num_classes, card.projected_dim)
        self.card = card

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in the order of their numbers."""
        return self.card.classes

    @property
    def image_size(self) -> int:
        """Side of the input in pixels."""
        return self.card.image_size

    @property
    def preprocessing(self) -> Augmentation:
        """How an image becomes the input: the centre crop and colours of the evaluation."""
        return self.card.preprocessing

    @property
    def training_summary(self) -> dict[str, Any]:
        """How it was trained: settings, steps, seconds, metrics; a module's ``training`` is its mode."""
        return self.card.training


def load_model(folder: str | Path, device: str | torch.device | None = None) -> TrainedModel:
    """A finished model in eval mode, whose weights ask for no gradients.

    Args:
        folder: a model folder, such as ``runs/digits_lt/student``, or a copy of one.
        device: where it is to be; by default the GPU where there is one.

    Raises:
        InputError: the folder holds no finished model, or one that cannot be used; or there is no such device.
    """
    place = choose_device(device)
    card = read_model_card(folder)
    check_shapes(folder, card)
    with torch.random.fork_rng(devices=[]):  # the fresh weights, which are lost, must not use up random numbers
        model = TrainedModel(card)
    read_weights(folder, card, model)
    return model.requires_grad_(False).eval().to(place)
