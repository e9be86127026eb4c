"""The reference decoder: what it refuses is a bad image, here and in training."""

import numpy as np
import torch
from torchvision.io import ImageReadMode, decode_image


def decode_rgb(encoded: np.ndarray) -> torch.Tensor:
    """Decodes a JPEG, PNG or WebP file, without applying its orientation tag.

    Args:
        encoded: ``(num_bytes,)`` uint8, writable (PyTorch shares its memory).

    Returns:
        ``(3, height, width)`` uint8.

    Raises:
        RuntimeError: the bytes cannot be decoded.
    """
    return decode_image(torch.from_numpy(encoded), mode=ImageReadMode.RGB, apply_exif_orientation=False)
