"""PNG files: written, checked to the last byte, and rid of what is not pixels."""

import io
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by color type
PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
FRAME_CHUNKS = (b"fcTL", b"fdAT")
BACKGROUND_BYTES = {0: 2, 2: 6, 3: 1, 4: 2, 6: 6}  # by color type
ANIMATION_BYTES, HEADER_BYTES = 8, 13
MAX_CHUNK_BYTES = 8_000_000  # of metadata, for OpenCV


def encode_png(pixels: np.ndarray) -> bytes:
    """Pixels as a PNG file.

    Args:
        pixels: ``(height, width)`` or ``(height, width, 3)`` uint8.
    """
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


@dataclass(frozen=True, kw_only=True)
class PngFile:
    """A PNG as its chunks tell; those that decoders must understand are undamaged.

    Attributes:
        bit_depth: bits per sample.
        color_type: 0 grey, 2 RGB, 3 palette, 4 grey with alpha, 6 RGB with alpha.
        pixel_chunks: kind and content of the chunks that decide about the pixels, in order.
        metadata: content of the undamaged other chunks, by kind; the first of each.
        is_for_all: whether OpenCV reads it too, which is stricter with metadata than libpng.
    """

    bit_depth: int
    color_type: int
    pixel_chunks: list[tuple[bytes, bytes]]
    metadata: dict[bytes, bytes]
    is_for_all: bool

    def without_metadata(self) -> bytes:
        """A file of the same pixels and nothing else."""
        return SIGNATURE + b"".join(chunk(kind, body) for kind, body in [*self.pixel_chunks, (b"IEND", b"")])


def chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk as it is in a file: length, kind, content and checksum."""
    return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(body, zlib.crc32(kind)).to_bytes(4, "big")


def read_png(data: bytes) -> PngFile:
    """The chunks of a PNG.

    What follows the pixels may be damaged or missing, the end marker too, and so may all metadata.

    Raises:
        ValueError: a chunk that decides about the pixels is damaged or missing.
    """
    pixel_chunks: list[tuple[bytes, bytes]] = []
    metadata: dict[bytes, bytes] = {}
    position, is_for_all, is_ended = len(SIGNATURE), True, False
    while position + 8 <= len(data) and not is_ended:
        length, kind = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        body, stop = data[position + 8 : position + 8 + length], position + 12 + length
        is_intact = zlib.crc32(body, zlib.crc32(kind)).to_bytes(4, "big") == data[stop - 4 : stop]
        is_last_part = stop > len(data)
        if not pixel_chunks and kind != b"IHDR":
            raise ValueError("begins with another chunk than its header")
        if kind == b"IEND":
            is_ended = not is_last_part
            break
        if kind == b"IHDR" and (pixel_chunks or length != HEADER_BYTES):
            raise ValueError("has no header that can be read")
        if kind in PIXEL_CHUNKS and (is_intact or (is_last_part and kind == b"IDAT")):
            pixel_chunks.append((kind, body))
        elif kind in PIXEL_CHUNKS:
            raise ValueError(f"the checksum of chunk {kind.decode()} is wrong")
        elif not kind.isalpha() or kind[:1].isupper():
            if pixel_chunks[-1][0] != b"IDAT":
                raise ValueError(f"has a chunk {kind!r}, which no decoder knows")
            break  # behind the pixels: the rest is no PNG any more
        elif is_intact:
            metadata.setdefault(kind, body)
        is_for_all = is_for_all and _is_harmless(kind, body, length, pixel_chunks)
        position = stop
    if b"IDAT" not in [kind for kind, _ in pixel_chunks]:
        raise ValueError("has no pixels")
    header = pixel_chunks[0][1]
    return PngFile(
        bit_depth=header[8],
        color_type=header[9],
        pixel_chunks=pixel_chunks,
        metadata=metadata,
        is_for_all=is_for_all and is_ended,
    )


def _is_harmless(kind: bytes, body: bytes, length: int, pixel_chunks: list[tuple[bytes, bytes]]) -> bool:
    """Whether OpenCV, by which DALI reads PNG, reads on behind a chunk, even if its checksum is wrong."""
    if kind in PIXEL_CHUNKS or kind == b"tEXt" or pixel_chunks[-1][0] == b"IDAT":
        return True
    if kind == b"acTL":
        return length == ANIMATION_BYTES and any(body[:4])
    if kind == b"bKGD":
        return length == BACKGROUND_BYTES.get(pixel_chunks[0][1][9])
    return kind not in FRAME_CHUNKS and length <= MAX_CHUNK_BYTES


def check_pixels(png: PngFile) -> None:
    """Checks that the compressed data is the whole image and no more: torchvision 0.29 crashes on what is not.

    Raises:
        ValueError: it is damaged, too short or too long.
    """
    header = png.pixel_chunks[0][1]
    width, height, is_interlaced = int.from_bytes(header[:4], "big"), int.from_bytes(header[4:8], "big"), header[12]
    channels = CHANNELS.get(png.color_type, 1)
    num_bytes = height * (1 + (width * channels * png.bit_depth + 7) // 8)  # each row has a filter byte
    compressed = b"".join(body for kind, body in png.pixel_chunks if kind == b"IDAT")
    inflate = zlib.decompressobj()
    try:
        inflated = inflate.decompress(compressed, 2 * num_bytes + 1024)  # interlaced images have more rows
    except zlib.error as error:
        raise ValueError(f"the compressed data is damaged ({error})") from error
    if not inflate.eof or len(inflated) < num_bytes or (len(inflated) > num_bytes and not is_interlaced):
        raise ValueError("the compressed data is not as long as the image")
