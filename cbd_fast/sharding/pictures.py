"""One picture: checked, and made into what a shard may hold.

A shard holds JPEG, PNG and WebP pictures of 8-bit grey or RGB, which every decoder here reads alike. Bytes that are
already so go in unchanged; any other picture (CMYK, palette, alpha, 16 bits, BMP, TIFF, ...) is stored as an RGB PNG.
"""

import io
import re
import warnings
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torchvision.io import ImageReadMode, decode_image

# MPO is what many phones and cameras write: a JPEG with others behind it, which decoders pass over
EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}


@dataclass(frozen=True, kw_only=True)
class CheckedPicture:
    """What goes into a shard. ``width`` and ``height`` are those of the coded picture, orientation tags ignored."""

    data: bytes
    extension: str
    width: int
    height: int
    converted: bool


def check_picture(data: bytes) -> CheckedPicture:
    """Decodes a picture completely and returns it as a shard may hold it.

    Args:
        data: the bytes of a picture file of any format that Pillow reads.

    Raises:
        ValueError: the bytes are not a whole picture; the message is the reason.
    """
    if not data:
        raise ValueError("the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about odd metadata of pictures that decode well
            with Image.open(io.BytesIO(data)) as image:
                if image.format == "PNG":
                    _check_png(data, image)
                if image.format in EXTENSIONS and image.mode in ("L", "RGB") and not _is_animated(image):
                    width, height = image.size
                    pixels = decode_rgb(np.frombuffer(data, np.uint8).copy())
                    if pixels.dtype == torch.uint8 and tuple(pixels.shape) == (3, height, width):
                        return CheckedPicture(
                            data=data,
                            extension=EXTENSIONS[image.format],
                            width=width,
                            height=height,
                            converted=False,
                        )
                return _as_png(image)
    except UnidentifiedImageError as error:
        raise ValueError("not a picture, or of an unknown format") from error
    except Exception as error:  # on damaged files Pillow's plugins raise all sorts, IndexError among them
        raise ValueError(f"cannot be decoded: {first_line(error)}") from error


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


def first_line(error: Exception) -> str:
    """The first line of an error's message, without the place in a library's source that some begin with."""
    lines = str(error).strip().splitlines()
    return re.sub(r"^\w+, /\S+:\d+, ", "", lines[0]) if lines else type(error).__name__


def encode_png(pixels: np.ndarray) -> bytes:
    """``(height, width)`` or ``(height, width, 3)`` uint8 as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def _check_png(data: bytes, image: Image.Image) -> None:
    """Checks a PNG to its last byte: torchvision 0.29 crashes on damaged ones, and Pillow lets short ones pass."""
    Image.open(io.BytesIO(data)).verify()
    image.load()
    parts, position = [], 8
    while position < len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        if data[position + 4 : position + 8] == b"IDAT":
            parts.append(data[position + 8 : position + 8 + length])
        position += 12 + length
    bit_depth, color_type, is_interlaced = data[24], data[25], data[28]
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color_type]
    num_bytes = image.height * (1 + (image.width * channels * bit_depth + 7) // 8)  # each row has a filter byte
    inflate = zlib.decompressobj()
    inflated = inflate.decompress(b"".join(parts), 2 * num_bytes + 1024)  # interlaced pictures have more rows
    if not inflate.eof or len(inflated) < num_bytes or (len(inflated) > num_bytes and not is_interlaced):
        raise ValueError("the compressed data is not as long as the picture")


def _is_animated(image: Image.Image) -> bool:
    return image.format != "MPO" and getattr(image, "n_frames", 1) > 1


def _as_png(image: Image.Image) -> CheckedPicture:
    """The (first frame of the) picture as 8-bit RGB; transparency is dropped, as everywhere in the field."""
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255 instead of scaling
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    rgb = np.asarray(image.convert("RGB"))
    height, width = rgb.shape[:2]
    return CheckedPicture(data=encode_png(rgb), extension="png", width=width, height=height, converted=True)
