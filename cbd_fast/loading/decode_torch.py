"""Bytes and a Plan to uint8 crops on CPU threads: the reference of the decoders' contract.

A decoder is a pure function. It decodes the box of every picture, resizes it with bilinear antialiasing to the
model's input and ignores orientation tags. PyTorch's and torchvision's code leaves the interpreter's lock, so threads
are enough.
"""

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F

from cbd_fast.loading.augment import Plan
from cbd_fast.sharding.decode import decode_rgb
from cbd_fast.sharding.pictures import first_line


@dataclass(frozen=True)
class Crops:
    """What a decoder returns.

    Attributes:
        pixels: ``(B, image_size, image_size, 3)`` uint8 on the decoder's device.
        bad: positions in the batch that could not be decoded, with the reason; their pixels mean nothing.
    """

    pixels: torch.Tensor
    bad: dict[int, str]


class Decoder(Protocol):
    """The contract; may be called from several threads."""

    def __call__(self, encoded: Sequence[np.ndarray], plan: Plan) -> Crops:
        """Decodes a batch: for each picture its file, ``(num_bytes,)`` uint8, and its box in the plan."""


class TorchDecoder:
    """Decodes with torchvision and resizes with PyTorch on the threads of a pool."""

    def __init__(self, pool: Executor, image_size: int, pin_memory: bool = False) -> None:
        """Keeps what is the same for every batch.

        Args:
            pool: whose threads decode, one picture each.
            image_size: side of the crops in pixels.
            pin_memory: whether the crops will be copied to a GPU.
        """
        self._pool, self._image_size, self._pin_memory = pool, image_size, pin_memory

    def __call__(self, encoded: Sequence[np.ndarray], plan: Plan) -> Crops:
        size = self._image_size
        pixels = torch.empty((len(plan), size, size, 3), dtype=torch.uint8, pin_memory=self._pin_memory)

        def decode_into(position: int) -> str | None:
            try:
                picture = decode_rgb(encoded[position])
            except RuntimeError as error:
                return first_line(error)
            if picture.dtype != torch.uint8:
                return f"has {picture.dtype} pixels; shards hold pictures of 8 bits"
            pixels[position] = crop_and_resize(picture, plan.boxes[position], size)
            return None

        reasons = enumerate(self._pool.map(decode_into, range(len(plan))))
        return Crops(pixels, {position: reason for position, reason in reasons if reason is not None})


def crop_and_resize(picture: torch.Tensor, box: np.ndarray, image_size: int) -> torch.Tensor:
    """Cuts one box out of one picture.

    Args:
        picture: ``(3, height, width)`` uint8.
        box: top, left, height, width; what it covers outside the picture is black.
        image_size: side of the crop in pixels.

    Returns:
        ``(image_size, image_size, 3)`` uint8.
    """
    top, left, height, width = (int(number) for number in box)
    bottom, right = top + height, left + width
    crop = picture[:, max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    if crop.shape[1:] != (height, width):
        inside, crop = crop, picture.new_zeros((3, height, width))
        below, beside = max(-top, 0), max(-left, 0)
        crop[:, below : below + inside.shape[1], beside : beside + inside.shape[2]] = inside
    if (height, width) != (image_size, image_size):
        crop = F.interpolate(crop[None], (image_size, image_size), mode="bilinear", antialias=True)[0]
    return crop.permute(1, 2, 0)
