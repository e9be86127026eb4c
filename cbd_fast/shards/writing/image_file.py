"""An image file opened: its size, pages and orientation, whatever state its metadata is in."""

import io
from dataclasses import dataclass

from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile as PillowImage

from cbd_fast.errors import first_line
from cbd_fast.shards.png import SIGNATURE, PngFile, check_pixels, read_png
from cbd_fast.shards.writing.bare_file import BareFile, bare_file

UPRIGHT, ORIENTATIONS = 1, range(1, 9)


@dataclass(kw_only=True, slots=True)  # not frozen, which takes microseconds of each image
class ImageFile:
    """An image file that Pillow has opened, in whole or without its metadata.

    Attributes:
        image: the first page; of a PNG, the pixels are loaded and checked.
        data: the file's bytes; without metadata where a training decoder does not read them with it.
        pixel_data: bytes that Pillow opens.
        orientation: the orientation tag that is still to be applied, 1 to 8.
        num_pages: pages or frames.
        is_bare: whether metadata was removed from ``data``.
        png: its chunks, if it is a PNG.
    """

    image: PillowImage
    data: bytes
    pixel_data: bytes
    orientation: int
    num_pages: int
    is_bare: bool
    png: PngFile | None

    def reopen(self) -> PillowImage:
        """The same image once more, its pixels not yet loaded."""
        return _opened(self.pixel_data)[0]


class _TooLargeError(ValueError):
    """More pixels than are allowed."""


def open_image(data: bytes, max_pixels: int) -> ImageFile:
    """An image file, opened.

    Args:
        data: the bytes of a file of any format that Pillow reads.
        max_pixels: a larger image is refused before it is decoded.

    Raises:
        ValueError: it is no image, damaged or too large; the message is the reason.
    """
    try:
        return _open_whole(data, max_pixels)
    except _TooLargeError:
        raise
    except Image.DecompressionBombError as error:
        raise ValueError(f"cannot be decoded: {first_line(error)}") from error
    except Exception as error:  # on damaged files Pillow's plugins raise all sorts, IndexError among them
        reason: Exception = error
    try:
        if bare := bare_file(data):
            return _open_bare(data, bare, max_pixels)
    except _TooLargeError:
        raise
    except Exception as error:
        reason = error
    if isinstance(reason, UnidentifiedImageError):
        reason = _reason_of_format(data)
        if isinstance(reason, UnidentifiedImageError):
            raise ValueError("not an image, or of an unknown format")
    raise ValueError(f"cannot be decoded: {first_line(reason)}") from reason


def _open_whole(data: bytes, max_pixels: int) -> ImageFile:
    image, num_pages = _opened(data)
    _check_size(image, max_pixels)
    png = read_png(data) if data.startswith(SIGNATURE) else None
    if png is not None:
        check_pixels(png)
        image.load()  # with the metadata behind the pixels
    bare = bare_file(data) if _may_need_baring(image, png) else None
    is_bare = bare is not None and bare.is_needed
    return ImageFile(
        image=image,
        data=bare.data if bare is not None and is_bare else data,
        pixel_data=data,
        orientation=_orientation(image),
        num_pages=num_pages,
        is_bare=is_bare,
        png=png,
    )


def _open_bare(data: bytes, bare: BareFile, max_pixels: int) -> ImageFile:
    image, num_pages = _opened(bare.data)
    _check_size(image, max_pixels)
    png = read_png(data) if data.startswith(SIGNATURE) else None
    if png is not None:
        check_pixels(png)
        image.load()
    image.info["exif"] = bare.exif
    is_bare = bare.is_needed or image.format == "WEBP"  # all decoders read WebP by the same library as Pillow
    return ImageFile(
        image=image,
        data=bare.data if is_bare else data,
        pixel_data=bare.data,
        orientation=_orientation(image),
        num_pages=num_pages,
        is_bare=is_bare,
        png=png,
    )


def _may_need_baring(image: PillowImage, png: PngFile | None) -> bool:
    """Whether it is worth a look at the file's metadata, which takes time, if Pillow has read it."""
    if png is not None:
        return not png.is_for_all
    if image.format == "WEBP":
        return True
    # segments of a JPEG; empty ones may be of an impossible length
    return not all(body for _, body in getattr(image, "applist", ()))


def _opened(data: bytes) -> tuple[PillowImage, int]:
    """The image, its pixels not yet loaded, and the number of its pages."""
    image = Image.open(io.BytesIO(data))
    try:
        num_pages = int(getattr(image, "n_frames", 1))
    except Exception:  # what stands behind the first page is damaged, and nobody wants it
        num_pages = 1
    if not isinstance(image.info.get("xmp"), bytes):  # of a TIFF it may be of any type, at which Pillow gives up
        image.info.pop("xmp", None)
    return image, num_pages


def _check_size(image: PillowImage, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise _TooLargeError(f"{width} x {height} pixels, more than the {max_pixels} of --max-pixels")


def _orientation(image: PillowImage) -> int:
    if image.format == "TIFF":  # Pillow applies it while it loads the pixels
        return UPRIGHT
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
    except Exception:  # a damaged block asks for nothing
        return UPRIGHT
    return orientation if orientation in ORIENTATIONS else UPRIGHT


def _reason_of_format(data: bytes) -> Exception:
    """Why the one format that a file begins like does not open it; as it was, if it begins like none."""
    for factory, accept in Image.OPEN.values():
        if accept is not None and accept(data[:16]) is True:
            try:
                factory(io.BytesIO(data), "")
            except Exception as error:
                return error
    return UnidentifiedImageError()
