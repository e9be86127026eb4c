"""Images as users give them: paths, bytes of files, PIL images, arrays, tensors."""

import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from cbd_fast.errors import InputError, first_line
from cbd_fast.loading.decoding.base import EncodedOrDecoded
from cbd_fast.shards.sources.base import SourceImage
from cbd_fast.shards.writing.validate_image import ImageRules, to_rgb, validate_image


@dataclass(frozen=True, kw_only=True)
class ImageInput:
    """One image as it was given; one of its fields besides the name is set.

    Attributes:
        name: path of the image, or ``image N``, counted from 0, if it has none.
        path: path of its file.
        data: bytes of its file.
        pixels: ``(height, width, 3)`` uint8.
        error: why it cannot be read.
    """

    name: str
    path: str | None = None
    data: bytes | None = None
    pixels: np.ndarray | None = None
    error: str | None = None


def each_input(images: Any, rules: ImageRules | None = None) -> Iterator[ImageInput]:
    """Every image of what a user gives: one, or an iterable of them; ``rules`` as of ``as_input``."""
    is_array = isinstance(images, torch.Tensor) or (isinstance(images, np.ndarray) and images.dtype.kind not in "OUST")
    is_file = isinstance(images, (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, io.IOBase))
    if is_file or (is_array and images.ndim <= 3) or not isinstance(images, Iterable):
        images = [images]
    return (as_input(number, image, rules or ImageRules()) for number, image in enumerate(images))


def as_input(number: int, image: Any, rules: ImageRules) -> ImageInput:
    """One image, whatever it is given as.

    What is given may change or be closed as soon as the next one is asked for, so pixels are copied at once.

    Args:
        number: position of the image among all that are given, for its name.
        image: a path, the bytes of a file, a PIL image, an array or a tensor.
        rules: how PIL images are turned, and scaled where they have more than 8 bits.

    Raises:
        InputError: it is none of these.
    """
    name = f"image {number}"
    if isinstance(image, (str, os.PathLike)):
        return ImageInput(name=os.fsdecode(image), path=os.fsdecode(image))
    if isinstance(image, (bytes, bytearray, memoryview)):
        return ImageInput(name=name, data=bytes(image))
    if isinstance(image, io.IOBase):
        return ImageInput(name=str(getattr(image, "name", name)), data=image.read())
    if isinstance(image, Image.Image):
        name = os.fsdecode(getattr(image, "filename", "") or name)
        try:
            upright = ImageOps.exif_transpose(image) if rules.orient else image
            return _of_pixels(name, to_rgb(upright, rules.sixteen_bit))
        except Exception as error:  # on damaged files Pillow's plugins raise all sorts when they load the pixels
            return ImageInput(name=name, error=f"cannot be decoded: {first_line(error)}")
    if isinstance(image, torch.Tensor) and image.dtype == torch.uint8 and image.ndim == 3 and len(image) in (1, 3):
        image = image.detach().permute(1, 2, 0).expand(-1, -1, 3).cpu().numpy()
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim in (2, 3):
        pixels = np.stack([image] * 3, axis=2) if image.ndim == 2 else image
        if pixels.shape[2] == 3:
            return _of_pixels(name, pixels)
    what = type(image).__name__
    if isinstance(image, (np.ndarray, torch.Tensor)):
        what += f", {image.dtype}, of shape {tuple(image.shape)}"
    raise InputError(
        f"{name}: of type {what}; must be a path, the bytes of an image file, a PIL image, a (H, W, 3) or (H, W) uint8 "
        "array or a (3, H, W) uint8 tensor (what is the model's input already goes to the model itself: load_model)"
    )


def _of_pixels(name: str, pixels: np.ndarray) -> ImageInput:
    if not pixels.size:
        return ImageInput(name=name, error="has no pixels")
    return ImageInput(name=name, pixels=np.array(pixels, order="C"))


@dataclass(frozen=True, kw_only=True)
class SizedSource:
    """An image as a decoder takes it.

    Attributes:
        source: its file as a shard would hold it, or its pixels.
        size: height and width in pixels.
    """

    source: EncodedOrDecoded
    size: tuple[int, int]


def read_source(given: ImageInput, rules: ImageRules) -> SizedSource | str:
    """An image as a decoder takes it, made so by the rules that the training images were stored by; or why not."""
    if given.error is not None:
        return given.error
    if given.pixels is not None:
        height, width, _ = given.pixels.shape
        return SizedSource(source=torch.from_numpy(given.pixels), size=(height, width))
    try:
        data = given.data
        if data is None:
            data = SourceImage(split="", name=given.name, label=0, num_bytes=None, path=given.path).read()
        stored = validate_image(data, rules)
    except OSError as error:
        return error.strerror or str(error)
    except ValueError as error:  # of bytes that are no image, or a path that cannot be one
        return first_line(error)
    return SizedSource(source=np.frombuffer(stored.data, np.uint8).copy(), size=(stored.height, stored.width))
