"""Image files that no library writes: of 16-bit colours, of odd tags."""

import struct
import zlib
from collections.abc import Sequence

import numpy as np

from cbd_fast.shards.png import SIGNATURE, chunk

COLOR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # of PNG, by channels
FORMATS = {3: "H", 4: "I", 12: "d"}  # of values of TIFF, by type
KINDS = {"u": 1, "i": 2, "f": 3}  # sample formats of TIFF


def deep_png(pixels: np.ndarray, *chunks: bytes) -> bytes:
    """``(height, width)`` or ``(height, width, 2 to 4)`` uint16 as a PNG of 16 bits, with other chunks in it."""
    height, width = pixels.shape[:2]
    color_type = COLOR_TYPES[1 if pixels.ndim == 2 else pixels.shape[2]]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return SIGNATURE + b"".join(parts)


def tiff(
    pixels: np.ndarray,
    *tags: tuple[int, int, Sequence[float]],
    order: str = "<",
    are_planes_apart: bool = False,
    photometric: int | None = None,
) -> bytes:
    """Pixels of any type as an uncompressed TIFF.

    Args:
        pixels: ``(height, width)`` or ``(height, width, 3 or 4)``.
        tags: further tags: number, type and values.
        order: ``<`` or ``>``, the order of bytes.
        are_planes_apart: whether the colours are one behind the other.
        photometric: what the samples mean; by default grey with black as zero, or RGB.
    """
    (height, width), num = pixels.shape[:2], 1 if pixels.ndim == 2 else pixels.shape[2]
    planes = np.moveaxis(pixels, 2, 0) if are_planes_apart else pixels
    data = planes.astype(pixels.dtype.newbyteorder(order)).tobytes()
    num_parts = num if are_planes_apart else 1
    size = len(data) // num_parts
    default = 1 if num == 1 else 2
    every: list[tuple[int, int, Sequence[float]]] = [
        (256, 3, [width]),
        (257, 3, [height]),
        (258, 3, [8 * pixels.dtype.itemsize] * num),
        (259, 3, [1]),
        (262, 3, [default if photometric is None else photometric]),
        (273, 4, [8 + size * part for part in range(num_parts)]),
        (277, 3, [num]),
        (278, 3, [height]),
        (279, 4, [size] * num_parts),
        (284, 3, [2 if are_planes_apart else 1]),
        (339, 3, [KINDS[pixels.dtype.kind]] * num),
        *([(338, 3, [2])] if num == 4 else []),
    ]
    own = {tag for tag, _, _ in tags}
    every = sorted([*tags, *(each for each in every if each[0] not in own)])
    position = 8 + len(data) + 2 + 12 * len(every) + 4
    entries = behind = b""
    for tag, kind, values in every:
        content = struct.pack(order + FORMATS[kind] * len(values), *values)
        if len(content) > 4:
            content, behind = struct.pack(order + "I", position + len(behind)), behind + content
        entries += struct.pack(order + "HHI", tag, kind, len(values)) + content.ljust(4, b"\0")
    header = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8 + len(data))
    return header + data + struct.pack(order + "H", len(every)) + entries + bytes(4) + behind
