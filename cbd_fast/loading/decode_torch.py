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
from cbd_fast.sharding.pictures import decode_rgb


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
                pixels[position] = decode_crop(encoded[position], plan.boxes[position], size)
            except RuntimeError as error:
                return str(error).splitlines()[0]
            return None

        reasons = enumerate(self._pool.map(decode_into, range(len(plan))))
        return Crops(pixels, {position: reason for position, reason in reasons if reason is not None})


def decode_crop(encoded: np.ndarray, box: np.ndarray, image_size: int) -> torch.Tensor:
    """Decodes one box of one picture.

    Args:
        encoded: ``(num_bytes,)`` uint8, a JPEG, PNG or WebP file.
        box: top, left, height, width; what it covers outside the picture is black.
        image_size: side of the crop in pixels.

    Returns:
        ``(image_size, image_size, 3)`` uint8.

    Raises:
        RuntimeError: the picture cannot be decoded.
    """
    top, left, height, width = (int(number) for number in box)
    picture = decode_rgb(encoded)
    if picture.dtype != torch.uint8:
        raise RuntimeError(f"has {picture.dtype} pixels; shards hold pictures of 8 bits")
    bottom, right = top + height, left + width
    crop = picture[:, max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    missing = (
        max(-left, 0),
        max(right - picture.shape[2], 0),
        max(-top, 0),
        max(bottom - picture.shape[1], 0),
    )
    if any(missing):
        crop = F.pad(crop, missing)
    if (height, width) != (image_size, image_size):
        crop = F.interpolate(crop[None], (image_size, image_size), mode="bilinear", antialias=True)[0]
    return crop.permute(1, 2, 0)
