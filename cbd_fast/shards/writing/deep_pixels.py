"""Images of more than 8 bits per sample: their pixels, the range of these, and how they become 8 bits.

Microscopes, X-ray machines and cameras write 10, 12 or 14 bits into 16, so what is white is not known from the format
alone: from what the file says of it, or else from all images of the set together, as the same value must be as bright
in each of them.
"""

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL.ImageFile import ImageFile as PillowImage

from cbd_fast.shards.png import PngFile
from cbd_fast.shards.writing.image_file import ImageFile

FULL, RANGE, MEASURE = "full", "range", "measure"
FULL_RANGE = (0.0, 65535.0)
MAX_VALUE = 255
DEEP_MODES = ("I", "F")  # and those that begin with I;16
# How Pillow unpacks the upper bytes of 16-bit samples, and how it then unpacks the lower ones: as if turned round
TURNED = "B" if sys.byteorder == "little" else "L"
LOWER_BYTES = {
    f"{colors};16{order}": f"{colors};16{turned}"
    for colors in ("RGB", "RGBA", "RGBX")
    for order, turned in (("B", "L"), ("L", "B"), ("N", TURNED))
}
GREY_ALPHA = "LA;16B"  # of PNG, which four ordinary bytes are unpacked like
BITS_PER_SAMPLE, PHOTOMETRIC, PLANES = 258, 262, 284  # tags of TIFF
MIN_TAGS, MAX_TAGS = (340, 280), (341, 281)  # SMinSampleValue, MinSampleValue, and so on
WHITE_IS_ZERO, SEPARATE_PLANES = 0, 2
# Of JPEG 2000: what its codestream begins with, and where behind that the bits of the first colour are, less 1
JPEG_2000_START, JPEG_2000_BITS, SIXTEEN_BITS = b"\xff\x4f\xff\x51", 42, b"\x0f"


class RangeNeededError(Exception):
    """An image of more than 8 bits, where the range of the set's images is not known yet."""


@dataclass(frozen=True, kw_only=True)
class ValueRange:
    """Lowest and highest sample values of images of more than 8 bits.

    Attributes:
        real: of their pixels.
        stated: as their files say, where they do and their pixels are within it; else as ``real``.
        is_stated: whether all files said it.
    """

    real: tuple[float, float]
    stated: tuple[float, float]
    is_stated: bool

    def __or__(self, other: "ValueRange") -> "ValueRange":
        """The range of both."""
        return ValueRange(
            real=(min(self.real[0], other.real[0]), max(self.real[1], other.real[1])),
            stated=(min(self.stated[0], other.stated[0]), max(self.stated[1], other.stated[1])),
            is_stated=self.is_stated and other.is_stated,
        )


def parse_range(text: str) -> tuple[float, float]:
    """The two numbers of ``LO,HI``.

    Raises:
        ValueError: it is something else, or ``LO`` is not below ``HI``.
    """
    low, high = map(float, text.split(","))
    if not -np.inf < low < high < np.inf:
        raise ValueError("LO must be below HI")
    return low, high


def format_range(low: float, high: float) -> str:
    """``LO,HI`` as ``parse_range`` reads it."""
    return ",".join(str(int(value)) if value == int(value) else repr(value) for value in (low, high))


def is_deep(file: ImageFile) -> bool:
    """Whether an image has more than 8 bits per sample that are its own."""
    image = file.image
    if file.png is not None:
        return file.png.bit_depth == 16
    return (
        image.mode in DEEP_MODES or image.mode.startswith("I;16") or _raw_mode(image) in LOWER_BYTES or _is_apart(image)
    )


def deep_samples(file: ImageFile) -> np.ndarray:
    """All bits of a deep image's samples, ``(height, width)`` or ``(height, width, 3)``; transparency is dropped.

    Raises:
        ValueError: they are no numbers, or in an order that cannot be read.
    """
    image = file.reopen()
    if image.mode in DEEP_MODES or image.mode.startswith("I;16"):
        samples = np.asarray(image)
        if not np.isfinite(samples).all():
            raise ValueError("has pixels that are no numbers (NaN or infinite)")
        return samples
    if _is_apart(image):
        raise ValueError("has 16-bit colours in separate planes; save it with its colours together")
    raw_mode = _raw_mode(image)
    if raw_mode == GREY_ALPHA:
        upper, lower = np.moveaxis(np.asarray(_unpacked_as(image, "RGBA"))[:, :, :2], 2, 0)
    else:
        lower = np.asarray(_unpacked_as(file.reopen(), LOWER_BYTES[raw_mode]))[:, :, :3]
        upper = np.asarray(image)[:, :, :3]
    return upper.astype(np.uint16) << 8 | lower


def value_range(file: ImageFile, samples: np.ndarray) -> ValueRange:
    """The range of a deep image's samples, and what its file says of it."""
    real = (float(samples.min()), float(samples.max()))
    stated = _stated_by_png(file.png, real) if file.png is not None else _stated_by_others(file, real)
    if stated is not None and not (stated[0] <= real[0] and real[1] <= stated[1]):
        stated = None
    return ValueRange(real=real, stated=stated or real, is_stated=stated is not None)


def to_8_bits(file: ImageFile, samples: np.ndarray, low: float, high: float) -> np.ndarray:
    """Samples from ``low`` to ``high`` as ``(height, width, 3)`` uint8 from 0 to 255, rounded down.

    Args:
        file: the image that they are of, which may say that white is zero.
        samples: ``(height, width)`` or ``(height, width, 3)``.
        low: the value that becomes 0; lower ones do, too.
        high: the value that becomes 255; higher ones do, too.
    """
    pixels = scaled(samples, low, high)
    if _tags(file.image).get(PHOTOMETRIC) == WHITE_IS_ZERO:
        pixels = MAX_VALUE - pixels
    return np.ascontiguousarray(np.broadcast_to(pixels[:, :, None], (*pixels.shape, 3))) if pixels.ndim == 2 else pixels


def scaled(samples: np.ndarray, low: float, high: float) -> np.ndarray:
    """Samples of any shape from ``low`` to ``high`` as uint8 from 0 to 255, rounded down."""
    scale = max(high - low, 1e-300)  # where all values are equal, they are black
    return ((np.clip(samples.astype(np.float64), low, high) - low) * MAX_VALUE / scale).astype(np.uint8)


def _stated_by_png(png: PngFile, real: tuple[float, float]) -> tuple[float, float] | None:
    """By the chunk of significant bits: as they are used, the lower ones of 16; by the standard, the upper ones."""
    if not (significant := png.metadata.get(b"sBIT")):
        return None
    bits = max(significant[: 3 if png.color_type & 2 else 1])
    if not 1 <= bits <= 16:
        return None
    return (0.0, 2.0**bits - 1) if real[1] < 2**bits else FULL_RANGE


def _stated_by_others(file: ImageFile, real: tuple[float, float]) -> tuple[float, float] | None:
    if _is_scaled(file):
        return FULL_RANGE
    tags = _tags(file.image)
    if tags.get(BITS_PER_SAMPLE) == (12,):
        return 0.0, 4095.0
    low, high = (next((_number(tags[tag]) for tag in choices if tag in tags), None) for choices in (MIN_TAGS, MAX_TAGS))
    return None if high is None else (min(0.0, real[0]) if low is None else low, high)


def _is_scaled(file: ImageFile) -> bool:
    """Whether the file says a smaller range than that of 16 bits, from which Pillow scales the samples to 16 bits."""
    if file.image.format == "PPM":
        return file.image.mode == "I" and file.image.tile[0].codec_name != "raw"
    if file.image.format == "JPEG2000":
        start = file.pixel_data.find(JPEG_2000_START) + JPEG_2000_BITS
        return file.pixel_data[start : start + 1] not in (b"", SIXTEEN_BITS)
    return False


def _is_apart(image: PillowImage) -> bool:
    tags = _tags(image)
    return tags.get(PLANES) == SEPARATE_PLANES and 16 in tags.get(BITS_PER_SAMPLE, ())


def _number(value: object) -> float | None:
    """The number, or the largest of several, that a tag holds; None if it holds something else."""
    values = value if isinstance(value, tuple) else (value,)
    return max(map(float, values)) if values and all(isinstance(v, (int, float)) for v in values) else None


def _tags(image: PillowImage) -> dict[int, Any]:
    return getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}


def _raw_mode(image: PillowImage) -> str:
    """How the file's bytes become pixels, in Pillow's words."""
    args = image.tile[0].args if getattr(image, "tile", None) else ""
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def _unpacked_as(image: PillowImage, raw_mode: str) -> PillowImage:
    image.tile = [
        tile._replace(args=(raw_mode, *tile.args[1:]) if isinstance(tile.args, tuple) else raw_mode)
        for tile in image.tile
    ]
    return image
