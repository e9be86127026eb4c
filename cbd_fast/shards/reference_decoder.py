"""The reference decoder: what it refuses is a bad image, here and in training."""

import numpy as np
import torch
from torchvision.io import ImageReadMode, decode_image

from cbd_fast.shards.image_header import check_image_size, image_format
from cbd_fast.shards.png_decoder import decode_png


def decode_rgb(encoded: np.ndarray, size: tuple[int, int] | None = None) -> torch.Tensor:
    """Decodes a JPEG, PNG or WebP file, without applying its orientation tag.

    Args:
        encoded: ``(num_bytes,)`` uint8, writable (PyTorch shares its memory).
        size: height and width in pixels that the file must have; it is refused before memory is taken.

    Returns:
        ``(3, height, width)`` uint8.

    Raises:
        RuntimeError: the bytes cannot be decoded.
    """
    try:
        if size is not None:
            check_image_size(encoded.data, *size)
        if image_format(encoded.data) == "PNG":
            # torchvision 0.29 crashes on all that libpng does not like
            return torch.from_numpy(decode_png(encoded.data)).permute(2, 0, 1)
    except ValueError as error:
        raise RuntimeError(str(error)) from error
    return decode_image(torch.from_numpy(encoded), mode=ImageReadMode.RGB, apply_exif_orientation=False)
