import io
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from cbd_fast.shards.writing.validate_image import ImageRules, validate_image
from tests.helpers import encoded


def read(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("extension", ["jpg", "png", "webp"])
@pytest.mark.parametrize("is_grey", [False, True])
def test_ordinary_images_go_in_unchanged(photos, extension, is_grey):
    pixels = photos[0][:50, :70]
    data = encoded(pixels[:, :, 0] if is_grey else pixels, extension)
    checked = validate_image(data)
    assert checked.data == data
    assert (checked.extension, checked.width, checked.height, checked.converted) == (extension, 70, 50, False)


def test_the_format_counts_not_the_name(photos):
    assert validate_image(encoded(photos[0], "png")).extension == "png"


@pytest.mark.parametrize("mode", ["CMYK", "P", "LA", "RGBA", "1"])
def test_odd_modes_become_rgb_png(photos, mode):
    image = Image.fromarray(photos[0][:40, :60]).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG" if mode == "CMYK" else "PNG")
    checked = validate_image(buffer.getvalue())
    assert (checked.extension, checked.converted) == ("png", True)
    expected = np.asarray(Image.open(buffer).convert("RGB"))
    np.testing.assert_array_equal(read(checked.data), expected)


@pytest.mark.parametrize("extension", ["bmp", "tiff", "gif"])
def test_other_formats_become_png(photos, extension):
    checked = validate_image(encoded(photos[0][:40, :60], extension))
    assert (checked.extension, checked.width, checked.height) == ("png", 60, 40)


def test_16_bits_are_scaled_not_clipped():
    pixels = np.array([[0, 257 * 10, 65535]], np.uint16)
    checked = validate_image(encoded(pixels, "png"))
    assert read(checked.data)[0, :, 0].tolist() == [0, 10, 255]


def test_orientation_tag_is_ignored(photos):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    checked = validate_image(encoded(photos[0][:40, :60], exif=exif))
    assert (checked.width, checked.height, checked.oriented) == (60, 40, True)
    exif[0x0112] = 1
    assert not validate_image(encoded(photos[0][:40, :60], exif=exif)).oriented


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: b"", "empty"),
        (lambda data: b"hello, I am a text", "not an image, or of an unknown format"),
        (lambda data: data[: len(data) // 2], None),
        (lambda data: data[:200], None),
    ],
)
@pytest.mark.parametrize("extension", ["jpg", "png"])
def test_bad_images_have_a_reason(photos, damage, reason, extension):
    with pytest.raises(ValueError, match=reason) as error:
        validate_image(damage(encoded(photos[0], extension)))
    assert str(error.value).strip()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("extension", ["jpg", "png", "webp"])
def test_flipped_bits_are_refused_or_harmless_but_never_end_the_process(photos, extension):
    data = encoded(photos[0][:40, :60], extension)
    rng = np.random.default_rng(0)
    reasons = []
    for position in rng.integers(0, len(data), 100):
        damaged = bytearray(data)
        damaged[position] ^= 1 << int(rng.integers(8))
        try:
            validate_image(bytes(damaged))
        except ValueError as error:
            reasons.append(str(error))
    assert len(reasons) >= (95 if extension == "png" else 1)  # only PNG has checksums
    assert not any("/" in reason for reason in reasons)


def test_images_of_phones_stay_jpeg(photos):
    first, second = (Image.fromarray(photo[:40, :60]) for photo in photos)
    buffer = io.BytesIO()
    first.save(buffer, format="MPO", save_all=True, append_images=[second])
    checked = validate_image(buffer.getvalue())
    assert (checked.data, checked.extension) == (buffer.getvalue(), "jpg")
    assert (checked.width, checked.height) == (60, 40)


def png(height: int, rows: bytes, *, cut: int = 0) -> bytes:
    """A grey PNG of 4 columns with correct checksums, whatever is in it."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    header = (4).to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    compressed = zlib.compress(rows)
    body = chunk(b"IDAT", compressed[: len(compressed) - cut]) if rows else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def test_png_with_correct_checksums_and_wrong_data_is_refused():
    row = bytes([0, 1, 2, 3, 4])
    assert validate_image(png(8, 8 * row)).height == 8
    for damaged in (png(8, 7 * row), png(8, 9 * row), png(8, 8 * row, cut=4), png(900, 8 * row), png(8, b"")):
        with pytest.raises(ValueError, match="cannot be decoded: "):
            validate_image(damaged)


def test_png_of_few_bits_is_accepted(photos):
    image = Image.fromarray(photos[0][:33, :35])
    buffer = io.BytesIO()
    image.convert("1").save(buffer, format="PNG", bits=1)
    assert validate_image(buffer.getvalue()).converted


def test_animated_images_become_their_first_frame(photos):
    first, second = (Image.fromarray(photo[:40, :60]) for photo in photos)
    for extension in ("gif", "webp", "png"):
        buffer = io.BytesIO()
        first.save(buffer, format=extension, save_all=True, append_images=[second], lossless=True)
        checked = validate_image(buffer.getvalue())
        assert (checked.extension, checked.converted) == ("png", True)
        if extension != "gif":  # which has a palette
            np.testing.assert_array_equal(read(checked.data), photos[0][:40, :60])


def test_too_many_pixels_are_refused_before_they_are_decoded():
    bomb = png(2**31 - 1, b"")
    with pytest.raises(ValueError, match=r"4 x 2147483647 pixels, more than the 100 of --max-pixels|exceeds limit"):
        validate_image(bomb, ImageRules(max_pixels=100))
    with pytest.raises(ValueError, match="4 x 50 pixels, more than the 100 of --max-pixels"):
        validate_image(png(50, b""), ImageRules(max_pixels=100))


@pytest.mark.parametrize(
    ("size", "rules", "target"),
    [
        ((500, 375), {"short_side": 256}, (341, 256)),
        ((375, 500), {"short_side": 256}, (256, 341)),
        ((200, 100), {"short_side": 256}, (200, 100)),  # never larger
        ((500, 375), {"max_side": 400}, (400, 300)),
        ((1000, 10), {"max_side": 50}, (50, 1)),
        ((1000, 400), {"short_side": 200, "max_side": 300}, (300, 120)),
        ((500, 375), {}, (500, 375)),
    ],
)
def test_target_sizes(size, rules, target):
    assert ImageRules(**rules).target_size(*size) == target


def test_shrunken_images(photos):
    half = ImageRules(short_side=100)
    expected = np.asarray(Image.fromarray(photos[0]).resize((150, 100), Image.Resampling.BILINEAR), np.int32)
    for extension, kind in (("jpg", "jpg"), ("webp", "jpg"), ("png", "png"), ("bmp", "png")):
        options = {"quality": 95} if extension in ("jpg", "webp") else {}
        checked = validate_image(encoded(photos[0], extension, **options), half)
        assert (checked.extension, checked.width, checked.height, checked.resized) == (kind, 150, 100, True)
        assert np.abs(read(checked.data) - expected).mean() < (4 if kind == "jpg" else 0.6)
    # a lossless image becomes a JPEG only where that is asked for
    checked = validate_image(encoded(photos[0], "png"), ImageRules(short_side=100, quality=95))
    assert checked.extension == "jpg"
    assert Image.open(io.BytesIO(checked.data)).layer[0][1:3] == (2, 2)  # 4:2:0
    assert np.abs(read(checked.data) - expected).mean() < 4


def test_small_images_keep_their_bytes(photos):
    small = photos[0][:40, :60]
    for extension in ("jpg", "png", "webp"):
        data = encoded(small, extension)
        assert validate_image(data, ImageRules(short_side=100)).data == data
    data = encoded(small)
    assert validate_image(data, ImageRules(quality=50)).data == data
    assert validate_image(encoded(small, "png"), ImageRules(quality=50)).extension == "jpg"


def test_quality_is_that_of_the_jpeg(photos):
    sizes = [len(validate_image(encoded(photos[0]), ImageRules(short_side=200, quality=q)).data) for q in (30, 90)]
    assert sizes[0] < sizes[1] / 2
    default = validate_image(encoded(photos[0]), ImageRules(short_side=200)).data
    assert default == validate_image(encoded(photos[0]), ImageRules(short_side=200, quality=90)).data


def test_header_verification_still_finds_what_is_cut_off(photos):
    header = ImageRules(verify="header")
    data = encoded(photos[0])
    assert validate_image(data, header).data == data
    for damaged in (data[:-1], data[:5000], data[:200], b""):
        with pytest.raises(ValueError, match=r"."):
            validate_image(damaged, header)
    damaged = bytearray(encoded(photos[0], "png"))
    damaged[2000] ^= 1
    with pytest.raises(ValueError, match="cannot be decoded"):
        validate_image(bytes(damaged), header)


def test_harmless_warnings_are_no_reason(photos):
    data = encoded(photos[0])
    trailing = data[:-2] + b"\x00\x00\x00" + data[-2:]  # bytes that do not belong, before the end
    assert validate_image(trailing).data == trailing
    assert validate_image(data + b"something behind the end").extension == "jpg"


def test_what_is_cut_off_and_closed_again_is_found(photos):
    data = encoded(photos[0])
    with pytest.raises(ValueError, match="cut off: its data ends before its pixels do"):
        validate_image(data[: len(data) // 3] + b"\xff\xd9")


def test_pixels_of_unknown_range_are_refused():
    with pytest.raises(ValueError, match="floating-point pixels"):
        validate_image(encoded(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8), "tiff"))


@pytest.mark.parametrize("exif", [b"", b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00"])
def test_lossless_webp_stays_lossless(photos, exif):
    data = encoded(photos[0], "webp", lossless=True, exif=exif)  # with metadata the file has another form
    assert validate_image(data, ImageRules(short_side=100)).extension == "png"
    assert validate_image(encoded(photos[0], "webp"), ImageRules(short_side=100)).extension == "jpg"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "tiff"])
def test_images_are_turned_upright_once(photos, extension, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if extension == "jpg" else {"lossless": True} if extension == "webp" else {}
    data = encoded(photos[0][:100, :160], extension, exif=exif, **options)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    checked = validate_image(data, ImageRules(orient=True))
    assert (checked.height, checked.width) == expected.shape[:2]
    assert checked.oriented == (orientation != 1 and extension != "tiff")  # Pillow turns TIFF by itself
    assert np.abs(read(checked.data).astype(int) - expected).mean() < (3 if extension == "jpg" else 1e-9)
    if orientation == 1:
        assert (checked.data == data) == (extension in ("jpg", "png"))
    elif extension != "tiff":
        assert checked.extension == ("jpg" if extension == "jpg" else "png")
    # what is in the shard is not turned by those who look at tags either
    assert Image.open(io.BytesIO(checked.data)).getexif().get(0x0112, 1) == 1
    again = validate_image(checked.data, ImageRules(orient=True))
    assert (again.data, again.oriented) == (checked.data, False)


def test_turned_images_are_shrunk_by_the_sides_that_they_then_have(photos):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(photos[0][:200, :400], exif=exif)
    checked = validate_image(data, ImageRules(orient=True, short_side=100))
    assert (checked.width, checked.height, checked.resized) == (100, 200, True)
    small = [len(validate_image(data, ImageRules(orient=True, quality=quality)).data) for quality in (30, 90)]
    assert small[0] < small[1] / 2
    assert (
        validate_image(data, ImageRules(orient=True)).data
        == validate_image(data, ImageRules(orient=True, quality=90)).data
    )
