"""One image: checked, and made into what a shard may hold.

A shard holds JPEG, PNG and WebP images of 8-bit grey or RGB, which every decoder here reads alike. Bytes that are
already so go in unchanged unless another size or quality is asked for; any other image (CMYK, palette, alpha,
16 bits, animated, BMP, TIFF, ...) is coded anew as 8-bit RGB.
"""

import io
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, UnidentifiedImageError

from cbd_fast.errors import first_line
from cbd_fast.shards.png import check_png, encode_png

# MPO is what many phones and cameras write: a JPEG with others behind it, which decoders pass over
EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
JPEG_FORMATS = ("JPEG", "MPO")
VERIFICATIONS = ("full", "header")
DEFAULT_QUALITY = 90
DEFAULT_MAX_PIXELS = 2 * 89_478_485  # where Pillow takes an image for a decompression bomb


@dataclass(frozen=True, kw_only=True)
class ImageRules:
    """How images are checked and stored.

    Attributes:
        verify: ``full`` decodes every image; ``header`` decodes a JPEG only if it does not end as one should.
        max_pixels: larger images are refused before they are decoded.
        short_side: images are shrunk until the shorter side has this many pixels; None leaves them.
        max_side: images are shrunk until the longer side has at most this many pixels; None leaves them.
        quality: JPEG quality of what is coded anew. None is 90 for shrunken lossy images, and PNG for all others.
    """

    verify: str = "full"
    max_pixels: int = DEFAULT_MAX_PIXELS
    short_side: int | None = None
    max_side: int | None = None
    quality: int | None = None

    def target_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height in pixels at which an image is stored; never larger than it is."""
        scale = 1.0
        if self.short_side is not None:
            scale = min(scale, self.short_side / min(width, height))
        if self.max_side is not None:
            scale = min(scale, self.max_side / max(width, height))
        return max(1, round(width * scale)), max(1, round(height * scale))


@dataclass(frozen=True, kw_only=True)
class ValidatedImage:
    """An image as a shard may hold it.

    Attributes:
        data: bytes of the image's file.
        extension: usual extension of such a file, without the dot.
        width: width of the coded image in pixels, orientation tags ignored.
        height: height of the coded image in pixels, orientation tags ignored.
        converted: whether the image's format or mode had to be changed.
        resized: whether the image was shrunk.
        oriented: whether an orientation tag, which everything here ignores, asks for a turned image.
    """

    data: bytes
    extension: str
    width: int
    height: int
    converted: bool = False
    resized: bool = False
    oriented: bool = False


def validate_image(data: bytes, rules: ImageRules | None = None) -> ValidatedImage:
    """The image as a shard may hold it, after it was checked.

    Args:
        data: the bytes of an image file of any format that Pillow reads.
        rules: how the image is checked and stored; by default it is decoded completely and keeps its size.

    Raises:
        ValueError: the bytes are not a whole image, or it is too large; the message is the reason.
    """
    rules = rules or ImageRules()
    if not data:
        raise ValueError("the file is empty")
    try:
        image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError as error:
        raise ValueError("not an image, or of an unknown format") from error
    except Exception as error:  # on damaged files Pillow's plugins raise all sorts, IndexError among them
        raise ValueError(f"cannot be decoded: {first_line(error)}") from error
    with image:
        width, height = image.size
        if width * height > rules.max_pixels:
            raise ValueError(f"{width} x {height} pixels, more than the {rules.max_pixels} of --max-pixels")
        try:
            return _stored(data, image, rules)
        except Exception as error:
            raise ValueError(f"cannot be decoded: {first_line(error)}") from error


def _stored(data: bytes, image: Image.Image, rules: ImageRules) -> ValidatedImage:
    image_format, (width, height) = image.format or "", image.size
    target = rules.target_size(width, height)
    oriented = image.getexif().get(ExifTags.Base.Orientation, 1) not in (0, 1)
    fits = image_format in EXTENSIONS and _is_plain(data, image)
    if fits and target == image.size and (rules.quality is None or image_format in JPEG_FORMATS):
        _verify(data, image, rules)
        extension = EXTENSIONS[image_format]
        return ValidatedImage(data=data, extension=extension, width=width, height=height, oriented=oriented)
    if image_format == "PNG":
        check_png(data, image)
    pixels = _decode_jpeg(data) if fits and image_format in JPEG_FORMATS else to_rgb(image)
    if target != image.size:
        pixels = _shrink(pixels, *target)
    as_jpeg = rules.quality is not None or (target != image.size and _is_lossy(data, image))
    return ValidatedImage(
        data=_encode_jpeg(pixels, rules.quality or DEFAULT_QUALITY) if as_jpeg else encode_png(pixels),
        extension="jpg" if as_jpeg else "png",
        width=target[0],
        height=target[1],
        converted=not fits,
        resized=target != image.size,
        oriented=oriented,
    )


def _is_plain(data: bytes, image: Image.Image) -> bool:
    """Whether the image is still and of 8-bit grey or RGB, as every decoder reads it."""
    if image.mode not in ("L", "RGB"):
        return False
    if image.format == "PNG":
        bit_depth, color_type = data[24], data[25]
        return bit_depth == 8 and color_type in (0, 2) and not _is_animated(image)
    return image.format == "MPO" or not _is_animated(image)


def _is_lossy(data: bytes, image: Image.Image) -> bool:
    if image.format != "WEBP":
        return image.format in JPEG_FORMATS
    position = 12  # a RIFF file: chunks of four letters and a length follow
    while position + 8 <= len(data):
        if data[position : position + 4] == b"VP8L":
            return False
        length = int.from_bytes(data[position + 4 : position + 8], "little")
        position += 8 + length + length % 2
    return True


def _is_animated(image: Image.Image) -> bool:
    return getattr(image, "n_frames", 1) > 1


def _verify(data: bytes, image: Image.Image, rules: ImageRules) -> None:
    if image.format not in JPEG_FORMATS:
        check_png(data, image) if image.format == "PNG" else image.load()
    elif rules.verify == "full" or not data.endswith(b"\xff\xd9"):
        try:
            # At 1/8 of the size every coded byte is still read, and what libjpeg only warns of is an error here.
            simplejpeg.decode_jpeg(data, "GRAY", min_height=1, min_width=1, min_factor=8, strict=True)
        except ValueError as warning:
            _decode_by_reference(data, warning)


def _decode_jpeg(data: bytes) -> np.ndarray:
    """Pixels of a JPEG, ``(height, width, 3)`` uint8."""
    try:
        return simplejpeg.decode_jpeg(data, "RGB", strict=True)
    except ValueError as warning:
        return _decode_by_reference(data, warning)


def _decode_by_reference(data: bytes, warning: ValueError) -> np.ndarray:
    """Pixels by training's decoder, ``(height, width, 3)`` uint8: many of libjpeg's warnings are harmless."""
    if "premature end" in str(warning).lower():  # decoders fill up with grey what was cut off
        raise ValueError("cut off: its data ends before its pixels do") from warning
    from cbd_fast.shards.reference_decoder import decode_rgb  # takes seconds to import and is rarely needed

    return decode_rgb(np.frombuffer(data, np.uint8).copy()).permute(1, 2, 0).numpy()


def to_rgb(image: Image.Image) -> np.ndarray:
    """Pixels of the (first frame of the) image, ``(height, width, 3)`` uint8; transparency is dropped, as is usual."""
    if image.mode == "F":
        raise ValueError("has floating-point pixels, of which nobody knows the range")
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255 instead of scaling
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    return np.asarray(image.convert("RGB"))


def _shrink(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Pixels of a smaller size, ``(height, width, 3)`` uint8: bilinear with antialiasing, as the loader resizes."""
    import torch  # takes seconds to import, and most shards keep their images' size

    # unsqueezed before it is permuted, PyTorch knows it as channels-last and returns the same, without a copy
    image = torch.from_numpy(np.array(pixels)).unsqueeze(0).permute(0, 3, 1, 2)
    shrunken = torch.nn.functional.interpolate(image, (height, width), mode="bilinear", antialias=True)
    return np.ascontiguousarray(shrunken[0].permute(1, 2, 0).numpy())


def _encode_jpeg(pixels: np.ndarray, quality: int) -> bytes:
    return simplejpeg.encode_jpeg(pixels, quality=quality, colorspace="RGB", colorsubsampling="420")
