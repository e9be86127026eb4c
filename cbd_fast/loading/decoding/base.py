"""What a decoder is: a pure function from images and a Plan to uint8 crops."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from cbd_fast.loading.augment import Plan

# an image's file, (num_bytes,) uint8, or the image itself, decoded before: (height, width, 3) uint8
EncodedOrDecoded = np.ndarray | torch.Tensor


@dataclass(frozen=True)
class Crops:
    """What a decoder returns.

    Attributes:
        pixels: ``(B, image_size, image_size, 3)`` uint8 on the decoder's device.
        bad: reasons by position in the batch, for images that cannot be decoded; their pixels mean nothing.
    """

    pixels: torch.Tensor
    bad: dict[int, str]


class Decoder(Protocol):
    """A decoder of files and of decoded images; may be called from several threads.

    It takes the box of every image, resizes it with bilinear antialiasing to the model's input, and ignores
    orientation tags. What it returns depends on its arguments alone.
    """

    def __call__(self, images: Sequence[EncodedOrDecoded], plan: Plan) -> Crops:
        """Crops of images.

        Args:
            images: B files, or what ``whole`` made of them.
            plan: the B boxes.
        """

    def whole(self, files: Sequence[np.ndarray], sizes: np.ndarray) -> list[torch.Tensor | str]:
        """Whole images, uncut.

        Args:
            files: n files, each ``(num_bytes,)`` uint8.
            sizes: ``(n, 2)`` int64 heights and widths in pixels.

        Returns:
            n images, each ``(height, width, 3)`` uint8, or the reason why there is none.
        """
