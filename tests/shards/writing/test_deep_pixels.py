import io

import numpy as np
import pytest
from PIL import Image

from cbd_fast.shards.png import chunk
from cbd_fast.shards.writing.deep_pixels import RangeNeededError, ValueRange, format_range, parse_range
from cbd_fast.shards.writing.validate_image import ImageRules, measure_image, validate_image
from tests.helpers import encoded
from tests.shards.writing.helpers import deep_png, tiff

TWELVE_BITS = ImageRules(sixteen_bit="0,4095")
MIN_AND_MAX = ((280, 3, [0]), (281, 3, [4095]))


def values(num_channels: int, high: int = 4095, low: int = 0) -> np.ndarray:
    """A picture of all values of 12 bits."""
    shape = (16, 20) if num_channels == 1 else (16, 20, num_channels)
    pixels = np.linspace(low, high, int(np.prod(shape))).astype(np.uint16)
    return np.random.default_rng(0).permutation(pixels).reshape(shape)


def read(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def in_8_bits(samples: np.ndarray, low: float, high: float) -> np.ndarray:
    pixels = np.floor((np.clip(samples.astype(float), low, high) - low) * 255 / (high - low)).astype(np.uint8)
    return np.stack([pixels] * 3, 2) if pixels.ndim == 2 else pixels


FILES = {
    "PNG": lambda pixels: deep_png(pixels),
    "TIFF": lambda pixels: tiff(pixels),
    "TIFF, the other order": lambda pixels: tiff(pixels, order=">"),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("num_channels", [1, 2, 3, 4])
def test_all_bits_count_and_transparency_is_dropped(kind, num_channels):
    if num_channels == 2 and kind != "PNG":
        pytest.skip("Pillow reads no such TIFF")
    pixels = values(num_channels)
    colors = {1: pixels, 2: pixels[..., 0], 3: pixels, 4: pixels[..., :3]}[num_channels]
    data = FILES[kind](pixels)
    checked = validate_image(data, TWELVE_BITS)
    np.testing.assert_array_equal(read(checked.data), in_8_bits(colors, 0, 4095))
    assert (checked.deep, checked.converted, checked.extension) == (True, True, "png")
    found = measure_image(data, TWELVE_BITS)
    assert found == ValueRange(real=(colors.min(), colors.max()), stated=(colors.min(), colors.max()), is_stated=False)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate"])
def test_compressed_tiff(compression):
    data = encoded(values(1), "tiff", compression=compression)
    np.testing.assert_array_equal(read(validate_image(data, TWELVE_BITS).data), in_8_bits(values(1), 0, 4095))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    "pixels",
    [
        np.linspace(-1000, 3000, 64).astype(np.int16).reshape(8, 8),
        np.linspace(0, 100_000, 64).astype(np.int32).reshape(8, 8),
        np.linspace(0, 0.3, 64).astype(np.float32).reshape(8, 8),
    ],
    ids=lambda pixels: str(pixels.dtype),
)
def test_signed_wide_and_real_numbers(pixels, order):
    found = measure_image(tiff(pixels, order=order), TWELVE_BITS)
    assert found.real == (pixels.min(), pixels.max())
    rules = ImageRules(sixteen_bit=format_range(*found.real))
    assert parse_range(rules.sixteen_bit) == found.real
    data = validate_image(tiff(pixels, order=order), rules).data
    np.testing.assert_array_equal(read(data), in_8_bits(pixels, *found.real))


@pytest.mark.parametrize(
    ("data", "stated"),
    [
        (deep_png(values(1, 4000), chunk(b"sBIT", b"\x0c")), (0, 4095)),
        (deep_png(values(3, 1000), chunk(b"sBIT", b"\x09\x0a\x09")), (0, 1023)),
        (deep_png(values(2, 1000), chunk(b"sBIT", b"\x0a\x10")), (0, 1023)),
        # by the standard the upper bits are meant
        (deep_png(values(1, 4000) << 4, chunk(b"sBIT", b"\x0c")), (0, 65535)),
        (deep_png(values(1, 4000), chunk(b"sBIT", b"\xff")), None),
        (deep_png(values(1, 4000), chunk(b"sBIT", b"")), None),
        (tiff(values(1, 4000), *MIN_AND_MAX), (0, 4095)),
        (tiff(values(3, 4000), *MIN_AND_MAX), (0, 4095)),
        (tiff(values(1, 4000), MIN_AND_MAX[1]), (0, 4095)),
        (tiff(values(1, 4000), (340, 3, [0]), (341, 3, [16383])), (0, 16383)),
        (tiff(values(1, 5000), *MIN_AND_MAX), None),  # which is not true
        (tiff(values(1, 4000), (281, 12, [np.nan])), None),
        (b"P5 20 16 4095\n" + values(1).astype(">u2").tobytes(), (0, 65535)),  # Pillow scales it
        (b"P5 20 16 65535\n" + values(1).astype(">u2").tobytes(), None),
        (encoded(values(1), "jpeg2000", irreversible=False), None),
    ],
)
def test_what_files_say_counts_where_it_is_true(data, stated):
    found = measure_image(data, ImageRules())
    assert (found.is_stated, found.stated) == (stated is not None, stated or found.real)
    expected = (np.array(found.real) - found.stated[0]) * 255 / (found.stated[1] - found.stated[0])
    if stated is not None:  # an image alone, too, becomes 8 bits by it
        pixels = read(validate_image(data).data)
        assert np.abs([pixels.min(), pixels.max()] - expected).max() < 1


def test_packed_samples_say_their_range():
    pixels = values(1).astype(np.uint32)
    pairs = pixels[:, ::2] << 12 | pixels[:, 1::2]
    packed = np.stack([pairs >> 16, pairs >> 8, pairs], 2).astype(np.uint8).reshape(16, 30)
    data = tiff(packed, (256, 3, [20]), (258, 3, [12]))
    np.testing.assert_array_equal(read(validate_image(data).data), in_8_bits(pixels, 0, 4095))


@pytest.mark.parametrize(
    ("data", "rules", "reason"),
    [
        (tiff(values(3), are_planes_apart=True), "0,4095", "16-bit colours in separate planes"),
        (tiff(values(4), are_planes_apart=True, order=">"), "full", "16-bit colours in separate planes"),
        (tiff(np.full((4, 4), np.nan, np.float32)), "0,1", r"pixels that are no numbers \(NaN or infinite\)"),
        (tiff(np.ones((4, 4), np.float32)), "full", "floating-point pixels, of which nobody knows the range"),
        (tiff(np.ones((4, 4), np.float32)), None, "floating-point pixels, of which nobody knows the range"),
        (tiff(values(1), (258, 3, [10])), "0,1023", "unknown pixel mode"),
    ],
)
def test_what_cannot_be_scaled_is_refused(data, rules, reason):
    with pytest.raises(ValueError, match=f"cannot be decoded: (has )?{reason}"):
        validate_image(data, ImageRules(sixteen_bit=rules))


@pytest.mark.parametrize(
    ("sixteen_bit", "low", "high"),
    [
        ("full", 0, 65535),
        ("range", 100, 4000),
        (None, 0, 65535),
        ("1000,2000", 1000, 2000),
        ("0.5,4000.5", 0.5, 4000.5),
    ],
)
def test_choices_for_an_image_alone(sixteen_bit, low, high):
    pixels = values(1, 4000, 100)
    data = validate_image(deep_png(pixels), ImageRules(sixteen_bit=sixteen_bit)).data
    np.testing.assert_array_equal(read(data), in_8_bits(pixels, low, high))


def test_an_image_without_contrast_is_black():
    data = validate_image(deep_png(np.full((4, 4), 77, np.uint16)), ImageRules(sixteen_bit="range")).data
    assert not read(data).any()


def test_white_may_be_zero():
    pixels = read(validate_image(tiff(values(1), photometric=0), TWELVE_BITS).data)
    np.testing.assert_array_equal(pixels, 255 - in_8_bits(values(1), 0, 4095))


def test_only_images_of_more_than_8_bits_need_a_range(photos):
    rules = ImageRules(sixteen_bit="measure")
    for extension in ("jpg", "png", "webp", "tiff", "gif", "bmp"):
        data = encoded(photos[0][:40, :48], extension)
        assert not validate_image(data, rules).deep
        assert measure_image(data, rules) is None
    for data in (deep_png(values(1)), deep_png(values(3)), tiff(values(3)), tiff(values(1))):
        with pytest.raises(RangeNeededError):
            validate_image(data, rules)
    assert measure_image(b"junk", rules) is None


@pytest.mark.parametrize("text", ["", "1", "2,1", "1,1", "nan,1", "0,inf", "1,2,3", "a,b"])
def test_ranges_that_are_none(text):
    with pytest.raises(ValueError, match=r"."):
        parse_range(text)
