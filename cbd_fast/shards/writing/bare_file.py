"""Image files rid of their metadata, which may be damaged or too large for a decoder while the pixels are whole."""

from dataclasses import dataclass

from cbd_fast.shards.png import SIGNATURE, read_png

JPEG_START, SCAN, COMMENT, JFIF, ADOBE = b"\xff\xd8\xff", 0xDA, 0xFE, 0xE0, 0xEE
APPLICATION = range(0xE0, 0xF0)
# Application segments that decide about the colours, with the bytes that libjpeg wants of them
COLOR_SEGMENTS = {JFIF: (b"JFIF\0", 14), ADOBE: (b"Adobe", 12)}
MIN_JPEG_LENGTH = 2  # of a segment: the two bytes that say it
WEBP_PIXEL_CHUNKS = (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF")
WEBP_PIXEL_FLAGS, WEBP_EXIF_FLAG = 0x12, 0x08  # alpha and animation; EXIF


@dataclass(frozen=True, kw_only=True)
class BareFile:
    """An image file without metadata.

    Attributes:
        data: a file of the same coded pixels and nothing else.
        exif: the EXIF block that was left out; empty if there was none that could be found.
        is_needed: whether one of the training decoders does not read the file with its metadata.
    """

    data: bytes
    exif: bytes = b""
    is_needed: bool


def bare_file(data: bytes) -> BareFile | None:
    """A JPEG, PNG or WebP file without its metadata; None for other formats.

    Raises:
        ValueError: what is not metadata is damaged.
    """
    if data.startswith(SIGNATURE):
        png = read_png(data)
        exif = png.metadata.get(b"eXIf", b"")
        return BareFile(data=png.without_metadata(), exif=exif, is_needed=not png.is_for_all)
    if data.startswith(JPEG_START):
        return _bare_jpeg(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _bare_webp(data)
    return None


def _bare_jpeg(data: bytes) -> BareFile:
    kept, exif, position, is_needed = [data[:2]], b"", 2, False
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            raise ValueError(f"has no segment at byte {position:,}, where one must begin")
        marker = data[position + 1]
        if marker == 0xFF:  # a byte to fill up
            position += 1
            continue
        if marker == SCAN:
            return BareFile(data=b"".join(kept) + data[position:], exif=exif, is_needed=is_needed)
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        is_needed = is_needed or length < MIN_JPEG_LENGTH  # libjpeg passes over it, DALI does not
        stop = position + 2 + max(length, MIN_JPEG_LENGTH)
        body = data[position + 4 : stop]
        if marker == 0xE1 and body.startswith(b"Exif\0\0"):
            exif = exif or body
        start, min_bytes = COLOR_SEGMENTS.get(marker, (b"", 0))
        is_metadata = marker in APPLICATION or marker == COMMENT
        if not is_metadata or (start and body.startswith(start) and len(body) >= min_bytes):
            kept.append(data[position:stop])
        position = stop
    raise ValueError("ends before its pixels begin")


def _bare_webp(data: bytes) -> BareFile:
    kept: list[bytes] = []
    exif, position, is_lossless, has_exif_flag = b"", 12, False, False
    end = int.from_bytes(data[4:8], "little") + 8  # if that is too early, the pixels are nevertheless looked for
    while position + 8 <= len(data) and not (kept and position >= end):
        kind, length = data[position : position + 4], int.from_bytes(data[position + 4 : position + 8], "little")
        body = data[position + 8 : position + 8 + length]
        if kind == b"EXIF":
            exif = exif or body
        if kind in WEBP_PIXEL_CHUNKS:
            if len(body) < length:
                raise ValueError("cut off: its data ends before its pixels do")
            if kind == b"VP8X":
                has_exif_flag = bool(body[:1] and body[0] & WEBP_EXIF_FLAG)
                body = bytes([body[0] & WEBP_PIXEL_FLAGS]) + body[1:] if body else body
            is_lossless = is_lossless or kind == b"VP8L"
            kept.append(kind + data[position + 4 : position + 8] + body + bytes(length % 2))
        position += 8 + length + length % 2
    if not kept:
        raise ValueError("has no pixels")
    content = b"WEBP" + b"".join(kept)
    return BareFile(
        data=b"RIFF" + len(content).to_bytes(4, "little") + content,
        exif=exif,
        is_needed=is_lossless and has_exif_flag,  # DALI 2.4 fails on lossless ones with EXIF
    )
