"""Box, flip and colour matrix of each image: pure NumPy, from settings and counters to a Plan.

Every random number is a hash of (seed, step, position in the global batch), so a batch can be planned again at any
time, anywhere. Training and test images differ only in the Plan.
"""

from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from cbd_fast.loading.colors import identity_colors, input_colors, jitter_colors
from cbd_fast.loading.counter_rng import hash64, uniform
from cbd_fast.settings import Settings

CENTER_FRACTION = 224 / 256
NUM_BOX_TRIES = 10  # as in torchvision's RandomResizedCrop

# What a random number is for; the first key after the seed. The sampling policies use the numbers below 16.
_BOX, _FLIP, _COLOR = 16, 17, 18


class Augmentation(Settings):
    """How an image becomes a square of the model's input size."""

    crop: Literal["random_resized_crop", "pad_and_crop", "center"] = Field(
        "random_resized_crop",
        description="random_resized_crop: a random box, resized; pad_and_crop: the middle square, moved by up to "
        "`padding` pixels, over black where the image ends, for small images; center: the middle, for testing",
    )
    min_area: float = Field(0.05, gt=0, le=1, description="random_resized_crop: smallest fraction of the image's area")
    max_area: float = Field(1.0, gt=0, le=1, description="random_resized_crop: largest fraction of the image's area")
    min_aspect: float = Field(3 / 4, gt=0, description="random_resized_crop: smallest width / height of the box")
    max_aspect: float = Field(4 / 3, gt=0, description="random_resized_crop: largest width / height of the box")
    padding: int = Field(4, ge=0, description="pad_and_crop: largest move, in pixels of the model's input")
    center_fraction: float | None = Field(
        None,
        gt=0,
        le=1,
        description="center: side of the square as a fraction of the image's short side; by default 224/256, or 1 for "
        "images that pad_and_crop trained on",
    )
    flip: bool = Field(True, description="mirror left and right with probability 1/2; never with center")
    color_jitter: float = Field(
        0.0,
        ge=0,
        le=1,
        description="strength of SimCLR's colour jitter and greyscale; 0 for none, 1 as published",
    )
    mean: tuple[float, float, float] | None = Field(
        None, description="subtracted from red, green and blue in [0, 1]; none in the paper", strict=False
    )
    std: tuple[float, float, float] | None = Field(
        None, description="divides red, green and blue after `mean`; none in the paper", strict=False
    )

    @model_validator(mode="after")
    def _check(self) -> "Augmentation":
        if self.min_area > self.max_area:
            raise ValueError(f"min_area {self.min_area:g} is above max_area {self.max_area:g}")
        if self.min_aspect > self.max_aspect:
            raise ValueError(f"min_aspect {self.min_aspect:g} is above max_aspect {self.max_aspect:g}")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"std {self.std} must be above 0")
        return self

    def for_test(self) -> "Augmentation":
        """The centre crop and colours that go with this augmentation."""
        fraction = self.center_fraction or (1.0 if self.crop == "pad_and_crop" else CENTER_FRACTION)
        return self.model_copy(update={"crop": "center", "center_fraction": fraction, "color_jitter": 0.0})

    @property
    def allow_padding(self) -> bool:
        """Whether boxes may reach over the image's edges."""
        return self.crop == "pad_and_crop" and self.padding > 0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be done to each image of a batch; its arrays have one entry per image.

    Attributes:
        indices: ``(B,)`` int64, numbers of the images in the index.
        sizes: ``(B, 2)`` int64, heights and widths of the coded images in pixels, as they were indexed.
        positions: ``(B,)`` int64, positions of the images in the global batch.
        boxes: ``(B, 4)`` int64, top, left, height and width in pixels of the coded image. The box is resized to the
            model's input. What it covers outside the image is black.
        flips: ``(B,)`` bool, mirror the crop left and right.
        colors: ``(B, 3, 4)`` float32, or ``(1, 3, 4)`` where all images have the same: from red, green, blue in
            0..255 and 1 to the model's input.
        color_range: ``(2, 3)`` float32, the input's values for black and for white; colours stay between them.
    """

    indices: np.ndarray
    sizes: np.ndarray
    positions: np.ndarray
    boxes: np.ndarray
    flips: np.ndarray
    colors: np.ndarray
    color_range: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def take(self, positions: np.ndarray) -> "Plan":
        """The plan of some of the images: ``(n,)`` int positions in this plan."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        shared = {"color_range"} | ({"colors"} if len(self.colors) == 1 else set())
        return Plan(**{name: array if name in shared else array[positions] for name, array in arrays.items()})


def make_plan(
    augmentation: Augmentation,
    *,
    indices: np.ndarray,
    sizes: np.ndarray,
    image_size: int,
    seed: int,
    step: int,
    positions: np.ndarray,
) -> Plan:
    """The plan of a batch.

    Args:
        augmentation: settings of crop, flip and colours.
        indices: ``(B,)`` int64, numbers of the images in the index.
        sizes: ``(B, 2)`` integers, heights and widths of the images in pixels.
        image_size: side of the model's input in pixels.
        seed: integer of 64 bits.
        step: number of the global step.
        positions: ``(B,)`` int64, positions of the images in the global batch.
    """
    sizes = sizes.astype(np.int64)
    heights, widths = sizes[:, 0], sizes[:, 1]
    is_center = augmentation.crop == "center"
    if is_center:
        boxes = center_boxes(heights, widths, augmentation.center_fraction or CENTER_FRACTION)
    elif augmentation.crop == "pad_and_crop":
        random = _uniforms(2, seed, _BOX, step, positions)
        boxes = padded_boxes(heights, widths, augmentation.padding, image_size, random)
    else:
        random = _uniforms(2 * NUM_BOX_TRIES + 2, seed, _BOX, step, positions)
        boxes = random_resized_boxes(heights, widths, augmentation, random)
    flips: np.ndarray = np.zeros(len(indices), bool)
    if augmentation.flip and not is_center:
        flips = uniform(seed, _FLIP, step, positions) < 0.5
    jitter = augmentation.color_jitter
    matrices = identity_colors(1)
    if jitter > 0:
        matrices = jitter_colors(_uniforms(7, seed, _COLOR, step, positions), jitter)
    mean, std = np.array(augmentation.mean or (0, 0, 0)), np.array(augmentation.std or (1, 1, 1))
    return Plan(
        indices=indices,
        sizes=sizes,
        positions=positions,
        boxes=boxes,
        flips=flips,
        colors=input_colors(matrices, mean, std).astype(np.float32),
        color_range=np.stack([(0 - mean) / std, (1 - mean) / std]).astype(np.float32),
    )


def random_resized_boxes(
    heights: np.ndarray, widths: np.ndarray, augmentation: Augmentation, random: np.ndarray
) -> np.ndarray:
    """Boxes of random area and aspect, as torchvision's RandomResizedCrop draws them.

    Ten boxes are tried; if none fits, the largest centred box of an allowed aspect is taken.

    Args:
        heights: ``(B,)`` int64.
        widths: ``(B,)`` int64.
        augmentation: the ranges of area and aspect.
        random: ``(B, 22)`` in [0, 1): ten areas, ten aspects, vertical and horizontal position.

    Returns:
        ``(B, 4)`` int64, within the images.
    """
    lowest, highest = augmentation.min_aspect, augmentation.max_aspect
    areas, aspects = random[:, :NUM_BOX_TRIES], random[:, NUM_BOX_TRIES : 2 * NUM_BOX_TRIES]
    area = (heights * widths)[:, None] * (
        augmentation.min_area + areas * (augmentation.max_area - augmentation.min_area)
    )
    aspect = np.exp(np.log(lowest) + aspects * (np.log(highest) - np.log(lowest)))
    box_widths = np.rint(np.sqrt(area * aspect)).astype(np.int64)
    box_heights = np.rint(np.sqrt(area / aspect)).astype(np.int64)
    fits = (box_widths >= 1) & (box_widths <= widths[:, None]) & (box_heights >= 1) & (box_heights <= heights[:, None])
    each, first_fit = np.arange(len(heights)), fits.argmax(axis=1)
    # where none fits: as much of the image as has an allowed aspect
    widest, tallest = np.rint(heights * highest).astype(np.int64), np.rint(widths / lowest).astype(np.int64)
    width = np.where(fits.any(axis=1), box_widths[each, first_fit], np.minimum(widths, np.maximum(widest, 1)))
    height = np.where(fits.any(axis=1), box_heights[each, first_fit], np.minimum(heights, np.maximum(tallest, 1)))
    top = np.floor(random[:, -2] * (heights - height + 1)).astype(np.int64)
    left = np.floor(random[:, -1] * (widths - width + 1)).astype(np.int64)
    centered = ~fits.any(axis=1)
    top, left = (
        np.where(centered, (heights - height) // 2, top),
        np.where(centered, (widths - width) // 2, left),
    )
    return np.stack([top, left, height, width], axis=1)


def padded_boxes(
    heights: np.ndarray, widths: np.ndarray, padding: int, image_size: int, random: np.ndarray
) -> np.ndarray:
    """The middle squares of full height or width, moved by up to ``padding`` pixels of the model's input each way.

    Args:
        heights: ``(B,)`` int64.
        widths: ``(B,)`` int64.
        padding: largest move, in pixels of the model's input.
        image_size: side of the model's input in pixels.
        random: ``(B, 2)`` in [0, 1).

    Returns:
        ``(B, 4)`` int64; boxes may reach over the edges.
    """
    boxes = center_boxes(heights, widths, 1.0)
    moves = np.floor(random * (2 * padding + 1)).astype(np.int64) - padding
    boxes[:, :2] += np.rint(moves * boxes[:, 2:] / image_size).astype(np.int64)
    return boxes


def center_boxes(heights: np.ndarray, widths: np.ndarray, fraction: float) -> np.ndarray:
    """The middle squares whose side is ``fraction`` of the short side: ``(B, 4)`` int64."""
    side = np.maximum(np.rint(np.minimum(heights, widths) * fraction), 1).astype(np.int64)
    return np.stack([(heights - side) // 2, (widths - side) // 2, side, side], axis=1)


def _uniforms(num: int, *keys: Any) -> np.ndarray:
    """``(B, num)`` random numbers of [0, 1) for ``(B,)`` keys."""
    return uniform(hash64(*keys)[:, None], np.arange(num))
