import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_image

from cbd_fast.shards.png_decoder import decode_png
from cbd_fast.shards.reference_decoder import decode_rgb
from tests.helpers import as_array

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunk(kind, body, checksum=None):
    checksum = zlib.crc32(kind + body) if checksum is None else checksum
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def png_of(rows, *, width, height, depth=8, color=2, interlace=0):
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlace)
    return SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def saved(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def interlaced_grey():
    """4 x 4 pixels in the seven passes of Adam7, each with the rows' filter bytes."""
    passes = {1: (1, 1), 4: (1, 1), 5: (1, 2), 6: (2, 2), 7: (2, 4)}
    rows = b"".join(
        (b"\0" + bytes(range(step * 8, step * 8 + width))) * height for step, (height, width) in passes.items()
    )
    return png_of(rows, width=4, height=4, color=0, interlace=1)


@pytest.fixture(scope="module")
def files(photos):
    image = Image.fromarray(photos[0][100:161, 100:187])
    return {
        "rgb": saved(image),
        "grey": saved(image.convert("L")),
        "palette": saved(image.convert("P"), transparency=3),
        "black and white": saved(image.convert("1")),
        "four bits": saved(image.convert("P", palette=Image.Palette.ADAPTIVE, colors=16), bits=4),
        "alpha": saved(image.convert("RGBA")),
        "grey and alpha": saved(image.convert("LA")),
        "transparent colour": saved(image, transparency=(1, 2, 3)),
        "interlaced": interlaced_grey(),
        "parts": saved(Image.fromarray(photos[1])),  # several IDAT chunks
    }


NAMES = ["rgb", "grey", "palette", "black and white", "four bits", "alpha", "grey and alpha", "transparent colour"]
NAMES += ["interlaced", "parts"]


@pytest.mark.parametrize("name", NAMES)
def test_pixels_are_torchvisions(files, name):
    data = as_array(files[name])
    expected = decode_image(torch.from_numpy(data), mode=ImageReadMode.RGB)
    assert torch.equal(decode_rgb(data), expected)


def test_metadata_may_be_damaged_and_the_end_missing(files):
    expected = decode_png(memoryview(files["rgb"]))
    start = len(SIGNATURE) + 25
    damaged = chunk(b"iCCP", bytes(2_000_000), checksum=0) + chunk(b"tEXt", b"\xff" * 10, checksum=0)
    data = files["rgb"][:start] + damaged + files["rgb"][start:-12]
    np.testing.assert_array_equal(decode_png(memoryview(data)), expected)


GOOD_ROWS = b"".join(bytes([number % 5]) + bytes(24) for number in range(8))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (png_of(GOOD_ROWS[:-1], width=8, height=8), "damaged"),
        (png_of(b"\x09" + GOOD_ROWS[1:], width=8, height=8), "damaged"),
        (png_of(GOOD_ROWS, width=60000, height=60000), "bytes of data cannot be 60000 x 60000 pixels"),
        (png_of(GOOD_ROWS, width=0, height=8), "0 x 8 pixels"),
        (png_of(GOOD_ROWS, width=8, height=8, color=5), "colour type 5"),
        (png_of(GOOD_ROWS, width=8, height=8, depth=16), "16 bits"),
        (png_of(GOOD_ROWS, width=8, height=8, depth=3), "damaged"),
        (png_of(GOOD_ROWS, width=8, height=8, color=3), "without its palette"),
        (SIGNATURE + chunk(b"IHDR", bytes(5)), "without a header"),
        (SIGNATURE, "without a header"),
        (SIGNATURE + chunk(b"IHDR", bytes(13), checksum=1), "IHDR chunk has a wrong checksum"),
    ],
)
def test_what_is_damaged_says_why(data, reason):
    with pytest.raises(RuntimeError, match=reason):
        decode_rgb(as_array(data))


def test_single_flipped_bits_are_decoded_or_refused(files):
    """torchvision crashes on nearly all of them."""
    rng, num_refused = np.random.default_rng(0), 0
    good = files["rgb"]
    (length,) = struct.unpack_from(">I", good, 33)
    for _ in range(300):
        body = bytearray(good[41 : 41 + length])
        body[rng.integers(length)] ^= 1 << int(rng.integers(8))
        data = good[:33] + chunk(b"IDAT", bytes(body)) + good[45 + length :]
        try:
            assert decode_rgb(as_array(data)).shape == (3, 61, 87)
        except RuntimeError:
            num_refused += 1
    assert num_refused > 200


def test_another_size_than_indexed_is_refused_before_decoding(files):
    with pytest.raises(RuntimeError, match="87 x 61 pixels, but the index has 32 x 32"):
        decode_rgb(as_array(files["rgb"]), (32, 32))
