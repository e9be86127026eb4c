"""What the first bytes of an image's file say: its format and its size, before memory is taken for its pixels.

The three formats that a shard may hold, read as their decoders read them. Nothing here is decoded.
"""

import struct

from cbd_fast.errors import printable

_JPEG, _PNG, _RIFF, _WEBP = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF", b"WEBP"
# frames of JPEG (SOF0 to SOF15); 0xC4, 0xC8 and 0xCC in their midst are something else
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_BARE = frozenset([0x01, *range(0xD0, 0xD8)])  # markers without a length


def image_format(file: memoryview) -> str:
    """``JPEG``, ``PNG`` or ``WebP``, by how a file begins.

    Raises:
        ValueError: it is none of them.
    """
    if file[:3] == _JPEG:
        return "JPEG"
    if file[:8] == _PNG:
        return "PNG"
    if file[:4] == _RIFF and file[8:12] == _WEBP:
        return "WebP"
    raise ValueError("neither JPEG nor PNG nor WebP, which are what shards hold")


def image_size(file: memoryview) -> tuple[int, int]:
    """Height and width in pixels of a file's coded image.

    Raises:
        ValueError: no image that a shard may hold, or the file ends before it says.
    """
    read = {"JPEG": _jpeg_size, "PNG": _png_size, "WebP": _webp_size}[image_format(file)]
    try:
        return read(file)
    except (struct.error, IndexError) as error:
        raise ValueError("the file ends before its size is said") from error


def check_image_size(file: memoryview, height: int, width: int) -> None:
    """Refuses a file whose image has another size than was indexed, before a decoder takes memory for it.

    Raises:
        ValueError: another size, or no image that a shard may hold.
    """
    found = image_size(file)
    if found != (height, width):
        raise ValueError(f"{found[1]} x {found[0]} pixels, but the index has {width} x {height}")


def _jpeg_size(file: memoryview) -> tuple[int, int]:
    position = 2
    while True:
        while file[position] != 0xFF:  # decoders pass over what lies between two markers
            position += 1
        while file[position] == 0xFF:
            position += 1
        marker = file[position]
        position += 1
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", file, position + 3)
            return height, width
        if marker in (0xD8, 0xD9, 0xDA):
            raise ValueError("a JPEG without a frame before its data")
        if marker and marker not in _JPEG_BARE:
            position += max(2, struct.unpack_from(">H", file, position)[0])


def _png_size(file: memoryview) -> tuple[int, int]:
    if file[12:16] != b"IHDR":
        raise ValueError("a PNG that does not begin with its header")
    width, height = struct.unpack_from(">II", file, 16)
    _check_chunks(file)
    return height, width


def _check_chunks(file: memoryview) -> None:
    """Refuses a chunk that is said to be longer than its file: OpenCV, which is in DALI, takes memory for all of it."""
    position = 8
    while position + 8 <= len(file):
        length, kind = struct.unpack_from(">I4s", file, position)
        if position + 8 + length > len(file):
            raise ValueError(f"its {printable(kind.decode('latin-1'))} chunk of {length} bytes ends behind the file")
        if kind == b"IEND":
            return
        position += 12 + length


def _webp_size(file: memoryview) -> tuple[int, int]:
    kind = bytes(file[12:16])
    if kind == b"VP8X":  # the canvas; the image's own size must be the same
        width, height = (int.from_bytes(file[start : start + 3], "little") + 1 for start in (24, 27))
        if len(file) < 30:
            raise IndexError
    elif kind == b"VP8L":
        bits = struct.unpack_from("<I", file, 21)[0]
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", file, 26))
    else:
        raise ValueError("a WebP that does not begin with its image")
    return height, width
