"""Files and a Plan to uint8 crops on CPU threads: the reference, with which the other decoders must agree.

PyTorch's and torchvision's code leaves the interpreter's lock, so threads are enough to decode many at a time.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from cbd_fast.errors import first_line
from cbd_fast.loading.augment import Plan
from cbd_fast.loading.decoding.base import Crops, EncodedOrDecoded
from cbd_fast.shards.reference_decoder import decode_rgb


class TorchDecoder:
    """A decoder that is torchvision's, resizing by PyTorch; one image after the other, in the thread that calls."""

    def __init__(self, image_size: int) -> None:
        """Remembers ``image_size``, the side of the crops in pixels."""
        self._image_size = image_size

    def __call__(self, images: Sequence[EncodedOrDecoded], plan: Plan) -> Crops:
        size = self._image_size
        pixels = torch.empty((len(plan), size, size, 3), dtype=torch.uint8)
        array = pixels.numpy()  # for small images NumPy copies in a fraction of PyTorch's time
        bad = {}
        for position, (image, box) in enumerate(zip(images, plan.boxes, strict=True)):
            decoded = image.cpu() if isinstance(image, torch.Tensor) else _decode(image)
            if isinstance(decoded, str):
                bad[position] = decoded
            else:
                crop = crop_and_resize(decoded, box, size)
                if crop.is_contiguous():
                    array[position] = crop.numpy()
                else:
                    pixels[position] = crop
        return Crops(pixels, bad)

    def whole(self, files: Sequence[np.ndarray], sizes: np.ndarray) -> list[torch.Tensor | str]:
        return [_decode(file) for file in files]


def _decode(file: np.ndarray) -> torch.Tensor | str:
    """An image, ``(height, width, 3)`` uint8, or why there is none."""
    try:
        image = decode_rgb(file)
    except RuntimeError as error:
        return first_line(error)
    if image.dtype != torch.uint8:
        return f"has {image.dtype} pixels; shards hold images of 8 bits"
    return image.permute(1, 2, 0)


def crop_and_resize(image: torch.Tensor, box: np.ndarray, image_size: int) -> torch.Tensor:
    """One box of one image, cut out and resized.

    Args:
        image: ``(height, width, 3)`` uint8.
        box: top, left, height, width; what it covers outside the image is black.
        image_size: side of the crop in pixels.

    Returns:
        ``(image_size, image_size, 3)`` uint8.
    """
    top, left, height, width = box.tolist()
    bottom, right = top + height, left + width
    # for small images NumPy takes a fraction of the time that PyTorch takes for slices
    crop = image.numpy()[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    if crop.shape[:2] != (height, width):
        inside, crop = crop, np.zeros((height, width, 3), np.uint8)
        below, beside = max(-top, 0), max(-left, 0)
        crop[below : below + inside.shape[0], beside : beside + inside.shape[1]] = inside
    return resize(torch.from_numpy(crop), image_size)


def resize(image: torch.Tensor, image_size: int) -> torch.Tensor:
    """An image resized, bilinear with antialiasing.

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
