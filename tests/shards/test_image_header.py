import io

import numpy as np
import pytest
from PIL import Image

from cbd_fast.shards.image_header import check_image_size, image_format, image_size
from tests.helpers import encoded

PIXELS = np.random.default_rng(0).integers(0, 255, (37, 53, 3), np.uint8)
FILES = {
    "baseline": encoded(PIXELS),
    "progressive": encoded(PIXELS, progressive=True),
    "with metadata": encoded(PIXELS, exif=b"Exif\0\0" + bytes(60_000), comment="a" * 300, icc_profile=bytes(70_000)),
    "grey": encoded(PIXELS[:, :, 0]),
    "png": encoded(PIXELS, "png"),
    "lossy": encoded(PIXELS, "webp"),
    "lossless": encoded(PIXELS, "webp", lossless=True),
    "extended": encoded(PIXELS, "webp", exif=b"Exif\0\0" + bytes(100)),
}


def view(data):
    return memoryview(bytearray(data))


@pytest.mark.parametrize("name", FILES)
def test_the_size_is_read_from_the_header(name):
    data = FILES[name]
    with Image.open(io.BytesIO(data)) as image:
        assert image_format(view(data)) == {"WEBP": "WebP"}.get(image.format, image.format)
    assert image_size(view(data)) == (37, 53)
    check_image_size(view(data), 37, 53)
    with pytest.raises(ValueError, match="53 x 37 pixels, but the index has 32 x 60000"):
        check_image_size(view(data), 60000, 32)


@pytest.mark.parametrize("name", FILES)
def test_any_beginning_of_a_file_is_an_error_or_has_its_size(name):
    for stop in (*range(60), *range(60, len(FILES[name]), 997)):
        try:
            assert image_size(view(FILES[name][:stop])) == (37, 53)
        except ValueError as error:
            assert str(error)  # noqa: PT017


def test_fill_bytes_and_garbage_between_markers_are_passed_over():
    data = FILES["baseline"]
    assert image_size(view(data[:2] + b"\xff\xff" + b"\0\x07" + b"\xff\xd0" + data[2:])) == (37, 53)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (encoded(PIXELS, "gif"), "neither JPEG nor PNG nor WebP"),
        (encoded(PIXELS, "bmp"), "neither JPEG nor PNG nor WebP"),
        (b"", "neither JPEG nor PNG nor WebP"),
        (b"\xff\xd8\xff\xd9", "without a frame"),
        (b"\xff\xd8\xff\xda\0\0", "without a frame"),
        (b"\xff\xd8\xff\xe0" + b"\0" * 8, "ends before"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\x0dIDAT" + bytes(20), "does not begin with its header"),
        (encoded(PIXELS, "png")[:33] + b"\x40\0\0\0tRNS" + bytes(20), "tRNS chunk of 1073741824 bytes ends behind"),
        (b"RIFF\0\0\0\0WEBPALPH" + bytes(40), "does not begin with its image"),
        (b"RIFF\0\0\0\0WEBPVP8X" + bytes(13), "ends before"),
    ],
)
def test_what_has_no_size_says_why(data, reason):
    with pytest.raises(ValueError, match=reason):
        image_size(view(data))
