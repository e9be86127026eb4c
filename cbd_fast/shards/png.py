"""PNG files: written, and checked to the last byte."""

import io
import zlib

import numpy as np
from PIL import Image


def encode_png(pixels: np.ndarray) -> bytes:
    """Pixels as a PNG file.

    Args:
        pixels: ``(height, width)`` or ``(height, width, 3)`` uint8.
    """
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def check_png(data: bytes, image: Image.Image) -> None:
    """Checks a PNG to its last byte: torchvision 0.29 crashes on damaged ones, and Pillow lets short ones pass.

    Args:
        data: bytes of the file.
        image: the same file as Pillow has opened it.

    Raises:
        Exception: the file is damaged. Pillow raises all sorts; what is too short or too long is a ``ValueError``.
    """
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
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    num_bytes = height * (1 + (width * channels * bit_depth + 7) // 8)  # each row has a filter byte
    inflate = zlib.decompressobj()
    inflated = inflate.decompress(b"".join(parts), 2 * num_bytes + 1024)  # interlaced images have more rows
    if not inflate.eof or len(inflated) < num_bytes or (len(inflated) > num_bytes and not is_interlaced):
        raise ValueError("the compressed data is not as long as the image")
