"""PNG files to pixels by Pillow's C code: it says what is wrong with a damaged file, where torchvision's crashes.

Of the file's chunks only those go into it that pixels are made of, so no damaged metadata stands in the way.
"""

import io
import struct
import zlib

import numpy as np
from PIL import Image

_PLAIN_MODES = {0: "L", 2: "RGB"}  # by colour type, at 8 bits: what shards are written with
_NUM_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PALETTE = 3
_MAX_RATIO = 1032  # of inflated bytes to deflated ones
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def decode_png(file: memoryview) -> np.ndarray:
    """Pixels of a PNG, ``(height, width, 3)`` uint8; transparency is dropped, metadata is passed over.

    Raises:
        ValueError: the file is damaged, or has more than 8 bits.
    """
    chunks = _chunks_of_pixels(file)
    header, data = b"".join(chunks[b"IHDR"]), b"".join(chunks[b"IDAT"])
    if len(header) != 13:
        raise ValueError("a PNG without a header")
    width, height, bit_depth, color_type, _, _, interlace = struct.unpack(">IIBBBBB", header)
    if color_type not in _NUM_CHANNELS or not width or not height:
        raise ValueError(f"a PNG of colour type {color_type} and {width} x {height} pixels")
    if color_type == _PALETTE and not chunks[b"PLTE"]:
        raise ValueError("a PNG without its palette")
    if bit_depth > 8:
        raise ValueError(f"has pixels of {bit_depth} bits; shards hold images of 8 bits")
    num_bytes = height * (-(-width * _NUM_CHANNELS[color_type] * bit_depth // 8) + 1)
    if num_bytes > _MAX_RATIO * len(data):  # before memory is taken
        raise ValueError(f"its {len(data)} bytes of data cannot be {width} x {height} pixels")
    mode = _PLAIN_MODES.get(color_type) if bit_depth == 8 else None
    try:
        if mode is None:
            image: Image.Image = Image.open(io.BytesIO(_minimal(chunks)))
        else:
            image = Image.frombytes(mode, (width, height), data, "zip", mode, int(interlace > 0))
        pixels = bytearray((image if mode == "RGB" else image.convert("RGB")).tobytes())
    except Exception as error:  # of damaged files Pillow raises all sorts
        raise ValueError(f"its data is damaged ({error})") from error
    return np.frombuffer(pixels, np.uint8).reshape(height, width, 3)


def _chunks_of_pixels(file: memoryview) -> dict[bytes, list[memoryview]]:
    """Content of the chunks that pixels are made of, by their kind, up to the end mark or that of the file."""
    chunks: dict[bytes, list[memoryview]] = {b"IHDR": [], b"PLTE": [], b"IDAT": []}
    position = len(_SIGNATURE)
    while position + 12 <= len(file):
        length, kind = struct.unpack_from(">I4s", file, position)
        start, stop = position + 8, position + 8 + length
        if kind == b"IEND":
            break
        if kind in chunks:
            checksum = file[stop : stop + 4]
            if len(checksum) == 4 and zlib.crc32(file[position + 4 : stop]) != int.from_bytes(checksum, "big"):
                raise ValueError(f"its {kind.decode()} chunk has a wrong checksum")
            chunks[kind].append(file[start:stop])
        position = stop + 4
    return chunks


def _minimal(chunks: dict[bytes, list[memoryview]]) -> bytes:
    """A file of these chunks alone."""
    parts = [(kind, b"".join(content)) for kind, content in chunks.items() if content] + [(b"IEND", b"")]
    packed = [
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in parts
    ]
    return _SIGNATURE + b"".join(packed)
