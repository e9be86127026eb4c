"""One image: checked, and made into what a shard may hold.

A shard holds JPEG, PNG and WebP images of 8-bit grey or RGB, which every decoder here reads alike. Bytes that are
already so go in unchanged unless another size or quality is asked for; any other image (CMYK, palette, alpha,
16 bits, animated, BMP, TIFF, ...) is coded anew as 8-bit RGB.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from cbd_fast.errors import first_line
from cbd_fast.shards.index import MAX_PIXELS
from cbd_fast.shards.png import encode_png
from cbd_fast.shards.writing.deep_pixels import (
    FULL,
    FULL_RANGE,
    MEASURE,
    RANGE,
    RangeNeededError,
    ValueRange,
    deep_samples,
    is_deep,
    parse_range,
    scaled,
    to_8_bits,
    value_range,
)
from cbd_fast.shards.writing.image_file import UPRIGHT, ImageFile, open_image
from cbd_fast.shards.writing.jpeg_file import END, check_jpeg, decode_jpeg, encode_jpeg

# MPO is what many phones and cameras write: a JPEG with others behind it, which decoders pass over
EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
JPEG_FORMATS = ("JPEG", "MPO")
VERIFICATIONS = ("full", "header")
DEFAULT_QUALITY = 90
DEFAULT_MAX_PIXELS = MAX_PIXELS  # where Pillow takes an image for a decompression bomb
# What makes an image upright, by its orientation tag
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = range(5, 9)  # the tags whose turns make the width the height


@dataclass(frozen=True, kw_only=True)
class ImageRules:
    """How images are checked and stored.

    Attributes:
        verify: ``full`` decodes every image; ``header`` decodes a JPEG only if it does not end as one should.
        max_pixels: larger images are refused before they are decoded.
        short_side: images are shrunk until the shorter side has this many pixels; None leaves them.
        max_side: images are shrunk until the longer side has at most this many pixels; None leaves them.
        quality: JPEG quality of what is coded anew. None is 90 for shrunken or turned lossy images, and PNG for all
            others.
        orient: whether images are turned as their orientation tags say.
        sixteen_bit: which values of images of more than 8 bits become 0 and 255: ``LO,HI``; ``full`` is 0 and 65535;
            ``range`` the lowest and highest of the set. None is what the files say, or else those of the set; of an
            image alone, or else ``full``. ``measure``: these images are refused with ``RangeNeededError``.
    """

    verify: str = "full"
    max_pixels: int = DEFAULT_MAX_PIXELS
    short_side: int | None = None
    max_side: int | None = None
    quality: int | None = None
    orient: bool = False
    sixteen_bit: str | None = None

    def target_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height in pixels at which an image is stored; never larger than it is."""
        scale = 1.0
        if self.short_side is not None:
            scale = min(scale, self.short_side / min(width, height))
        if self.max_side is not None:
            scale = min(scale, self.max_side / max(width, height))
        return max(1, round(width * scale)), max(1, round(height * scale))


@dataclass(kw_only=True, slots=True)  # not frozen, which takes microseconds of each image
class ValidatedImage:
    """An image as a shard may hold it.

    Attributes:
        data: bytes of the image's file.
        extension: usual extension of such a file, without the dot.
        width: width of the coded image in pixels, orientation tags ignored.
        height: height of the coded image in pixels, orientation tags ignored.
        converted: whether the image's format or mode had to be changed.
        resized: whether the image was shrunk.
        oriented: whether an orientation tag asks for a turned image.
        bare: whether metadata was removed that a training decoder stumbles over.
        paged: whether it is the first of several pages or frames.
        deep: whether it had more than 8 bits per sample.
    """

    data: bytes
    extension: str
    width: int
    height: int
    converted: bool = False
    resized: bool = False
    oriented: bool = False
    bare: bool = False
    paged: bool = False
    deep: bool = False


def validate_image(data: bytes, rules: ImageRules | None = None) -> ValidatedImage:
    """The image as a shard may hold it, after it was checked.

    Args:
        data: the bytes of an image file of any format that Pillow reads.
        rules: how the image is checked and stored; by default it is decoded completely and keeps its size.

    Raises:
        ValueError: the bytes are not a whole image, or it is too large; the message is the reason.
        RangeNeededError: the rules ask for it.
    """
    rules = rules or ImageRules()
    if not data:
        raise ValueError("the file is empty")
    file = open_image(data, rules.max_pixels)
    width, height = rules.target_size(*file.image.size)
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels, more than the {MAX_PIXELS} of an image in shards (--max-side)")
    try:
        return _stored(file, rules)
    except RangeNeededError:
        raise
    except Exception as error:
        raise ValueError(f"cannot be decoded: {first_line(error)}") from error


def measure_image(data: bytes, rules: ImageRules) -> ValueRange | None:
    """The range of an image of more than 8 bits; None for others, and for what ``validate_image`` refuses."""
    try:
        file = open_image(data, rules.max_pixels)
        if is_deep(file):
            return value_range(file, deep_samples(file))
    except Exception:  # whatever it is, it is told when the image is to be stored
        pass
    return None


def _stored(file: ImageFile, rules: ImageRules) -> ValidatedImage:
    image, image_format = file.image, file.image.format or ""
    turn = TURNS.get(file.orientation) if rules.orient else None
    width, height = image.size[::-1] if turn is not None and file.orientation in SIDEWAYS else image.size
    target = rules.target_size(width, height)
    fits = image_format in EXTENSIONS and _is_plain(file)
    is_changed = turn is not None or target != (width, height)
    if fits and not is_changed and (rules.quality is None or image_format in JPEG_FORMATS):
        _verify(file, rules)
        stored, extension = file.data, EXTENSIONS[image_format]
    else:
        is_plain_jpeg = fits and image_format in JPEG_FORMATS
        pixels = decode_jpeg(file.data, "progressive" in image.info) if is_plain_jpeg else _to_rgb(file, rules)
        if turn is not None:
            pixels = np.asarray(Image.fromarray(pixels).transpose(turn))
        if target != (width, height):
            pixels = _shrink(pixels, *target)
        as_jpeg = rules.quality is not None or (is_changed and _is_lossy(file))
        stored = encode_jpeg(pixels, rules.quality or DEFAULT_QUALITY) if as_jpeg else encode_png(pixels)
        extension = "jpg" if as_jpeg else "png"
    return ValidatedImage(
        data=stored,
        extension=extension,
        width=target[0],
        height=target[1],
        converted=not fits,
        resized=target != (width, height),
        oriented=file.orientation != UPRIGHT,
        bare=file.is_bare and stored is file.data,
        paged=file.num_pages > 1,
        deep=not fits and is_deep(file),
    )


def _is_plain(file: ImageFile) -> bool:
    """Whether the image is still and of 8-bit grey or RGB, as every decoder reads it."""
    if file.image.mode not in ("L", "RGB"):
        return False
    if file.png is not None and (file.png.bit_depth != 8 or file.png.color_type not in (0, 2)):
        return False
    return file.image.format == "MPO" or file.num_pages == 1


def _is_lossy(file: ImageFile) -> bool:
    if file.image.format != "WEBP":
        return file.image.format in JPEG_FORMATS
    data, position = file.data, 12  # a RIFF file: chunks of four letters and a length follow
    while position + 8 <= len(data):
        if data[position : position + 4] == b"VP8L":
            return False
        length = int.from_bytes(data[position + 4 : position + 8], "little")
        position += 8 + length + length % 2
    return True


def _verify(file: ImageFile, rules: ImageRules) -> None:
    if file.image.format not in JPEG_FORMATS:
        file.image.load()
    elif rules.verify == "full" or not file.data.endswith(END):
        check_jpeg(file.data, "progressive" in file.image.info)


def _to_rgb(file: ImageFile, rules: ImageRules) -> np.ndarray:
    if not is_deep(file):
        return to_rgb(file.image)
    if rules.sixteen_bit == MEASURE:
        raise RangeNeededError
    samples = deep_samples(file)
    found = value_range(file, samples)
    if rules.sixteen_bit == RANGE:
        low, high = found.real
    elif rules.sixteen_bit is None and found.is_stated:
        low, high = found.stated
    elif rules.sixteen_bit in (None, FULL):
        if samples.dtype.kind == "f":
            raise ValueError("has floating-point pixels, of which nobody knows the range; say it (--sixteen-bit LO,HI)")
        low, high = FULL_RANGE
    else:
        low, high = parse_range(rules.sixteen_bit)
    return to_8_bits(file, samples, low, high)


def to_rgb(image: Image.Image, sixteen_bit: str | None = None) -> np.ndarray:
    """Pixels of the (first frame of the) image, ``(height, width, 3)`` uint8; transparency is dropped, as is usual.

    Args:
        image: of any mode.
        sixteen_bit: ``LO,HI``, the values that become 0 and 255 where there are more than 8 bits; by default all of 16.
    """
    if image.mode == "F" and sixteen_bit is None:
        raise ValueError("has floating-point pixels, of which nobody knows the range")
    if image.mode == "F" or image.mode.startswith("I"):  # which Pillow would clip at 255 instead of scaling
        low, high = FULL_RANGE if sixteen_bit is None else parse_range(sixteen_bit)
        image = Image.fromarray(scaled(np.asarray(image), low, high))
    return np.asarray(image.convert("RGB"))


def _shrink(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Pixels of a smaller size, ``(height, width, 3)`` uint8: bilinear with antialiasing, as the loader resizes."""
    import torch  # takes seconds to import, and most shards keep their images' size

    # unsqueezed before it is permuted, PyTorch knows it as channels-last and returns the same, without a copy
    image = torch.from_numpy(np.array(pixels)).unsqueeze(0).permute(0, 3, 1, 2)
    shrunken = torch.nn.functional.interpolate(image, (height, width), mode="bilinear", antialias=True)
    return np.ascontiguousarray(shrunken[0].permute(1, 2, 0).numpy())
