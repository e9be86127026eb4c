"""Bytes and a Plan to uint8 crops on CPU threads: the reference of the decoders' contract.

A decoder is a pure function. It decodes the box of every image, resizes it with bilinear antialiasing to the
model's input and ignores orientation tags. PyTorch's and torchvision's code leaves the interpreter's lock, so threads
are enough to decode many at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F

from cbd_fast.errors import first_line
from cbd_fast.loading.augment import Plan
from cbd_fast.shards.reference_decoder import decode_rgb


@dataclass(frozen=True)
class Crops:
    """What a decoder returns.

    Attributes:
        pixels: ``(B, image_size, image_size, 3)`` uint8 on the decoder's device.
        bad: positions in the batch that could not be decoded, with the reason; their pixels mean nothing.
    """

    pixels: torch.Tensor
    bad: dict[int, str]


# an image's file, (num_bytes,) uint8, or the image itself, decoded before: (height, width, 3) uint8
Source = np.ndarray | torch.Tensor


class Decoder(Protocol):
    """The contract; may be called from several threads."""

    def __call__(self, sources: Sequence[Source], plan: Plan) -> Crops:
        """Makes crops of images: of each its file, or what ``whole`` made of that, and its box in the plan."""

    def whole(self, encoded: Sequence[np.ndarray], sizes: np.ndarray) -> list[torch.Tensor | str]:
        """Decodes whole images.

        Args:
            encoded: files, each ``(num_bytes,)`` uint8.
            sizes: ``(n, 2)`` heights and widths in pixels.

        Returns:
            Of each file its image, ``(height, width, 3)`` uint8, or the reason why there is none.
        """


class TorchDecoder:
    """Decodes with torchvision and resizes with PyTorch, one image after the other in the thread that calls."""

    def __init__(self, image_size: int) -> None:
        """``image_size``: side of the crops in pixels."""
        self._image_size = image_size

    def __call__(self, sources: Sequence[Source], plan: Plan) -> Crops:
        size = self._image_size
        pixels = torch.empty((len(plan), size, size, 3), dtype=torch.uint8)
        bad = {}
        for position, (source, box) in enumerate(zip(sources, plan.boxes, strict=True)):
            image = source.cpu() if isinstance(source, torch.Tensor) else _decoded(source)
            if isinstance(image, str):
                bad[position] = image
            else:
                pixels[position] = crop_and_resize(image, box, size)
        return Crops(pixels, bad)

    def whole(self, encoded: Sequence[np.ndarray], sizes: np.ndarray) -> list[torch.Tensor | str]:
        return [_decoded(data) for data in encoded]


def _decoded(data: np.ndarray) -> torch.Tensor | str:
    """An image, ``(height, width, 3)`` uint8, or why there is none."""
    try:
        image = decode_rgb(data)
    except RuntimeError as error:
        return first_line(error)
    if image.dtype != torch.uint8:
        return f"has {image.dtype} pixels; shards hold images of 8 bits"
    return image.permute(1, 2, 0)


def crop_and_resize(image: torch.Tensor, box: np.ndarray, image_size: int) -> torch.Tensor:
    """Cuts one box out of one image.

    Args:
        image: ``(height, width, 3)`` uint8.
        box: top, left, height, width; what it covers outside the image is black.
        image_size: side of the crop in pixels.

    Returns:
        ``(image_size, image_size, 3)`` uint8.
    """
    top, left, height, width = (int(number) for number in box)
    bottom, right = top + height, left + width
    crop = image[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    if crop.shape[:2] != (height, width):
        inside, crop = crop, image.new_zeros((height, width, 3))
        below, beside = max(-top, 0), max(-left, 0)
        crop[below : below + inside.shape[0], beside : beside + inside.shape[1]] = inside
    return resize(crop, image_size)


def resize(image: torch.Tensor, image_size: int) -> torch.Tensor:
    """Bilinear with antialiasing.

    Args:
        image: ``(height, width, 3)`` uint8.
        image_size: side of the result in pixels.

    Returns:
        ``(image_size, image_size, 3)`` uint8.
    """
    if image.shape[:2] == (image_size, image_size):
        return image
    # unsqueezed before it is permuted, PyTorch knows it as channels-last and returns the same, without two copies
    batch = image.unsqueeze(0).permute(0, 3, 1, 2)
    resized = F.interpolate(batch, (image_size, image_size), mode="bilinear", antialias=True)
    return resized[0].permute(1, 2, 0)
