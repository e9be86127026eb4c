"""Images whose pixels are whole and whose metadata is not, in all formats that go into shards."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from cbd_fast.shards.png import SIGNATURE, chunk, read_png
from cbd_fast.shards.reference_decoder import decode_rgb
from cbd_fast.shards.writing.validate_image import ImageRules, validate_image
from tests.helpers import as_array, encoded
from tests.shards.writing.helpers import tiff

JUNK = np.random.default_rng(0).integers(0, 256, 300, dtype=np.uint8).tobytes()
TURNED = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"


def with_chunks(png: bytes, *chunks: bytes, is_behind: bool = False) -> bytes:
    at = len(png) - 12 if is_behind else 33
    return png[:at] + b"".join(chunks) + png[at:]


def wrong(kind: bytes, body: bytes) -> bytes:
    """A chunk with a wrong checksum."""
    return chunk(kind, body)[:-4] + b"abcd"


def with_segment(jpeg: bytes, marker: int, body: bytes) -> bytes:
    return jpeg[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


def riff(webp: bytes, size: tuple[int, int], flags: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A WebP file of one image in the form that has metadata."""
    sides = b"".join((side - 1).to_bytes(3, "little") for side in size)
    extended = b"VP8X" + struct.pack("<I", 10) + bytes([flags, 0, 0, 0]) + sides
    others = b"".join(kind + struct.pack("<I", len(body)) + body + bytes(len(body) % 2) for kind, body in chunks)
    content = b"WEBP" + extended + webp[12:] + others
    return b"RIFF" + struct.pack("<I", len(content)) + content


ANCILLARY = {
    b"tEXt": b"a\0b",
    b"zTXt": b"a\0\0" + zlib.compress(b"hi"),
    b"iTXt": b"a\0\0\0\0\0hi",
    b"eXIf": TURNED[6:],
    b"iCCP": b"x\0\0" + zlib.compress(JUNK),
    b"gAMA": struct.pack(">I", 45455),
    b"sRGB": b"\0",
    b"tIME": b"\x07\xe8\1\1\1\1\1",
    b"pHYs": struct.pack(">IIB", 1, 1, 1),
    b"cHRM": bytes(32),
    b"tRNS": b"\0\1\0\2\0\3",
    b"prVt": b"x",
}
LARGE = zlib.compress(bytes(2_000_000))
# what is done to a file of each format, and whether training's decoders all read the result
PNG: dict[str, tuple[Callable[[bytes], bytes], bool]] = {
    "EXIF that is none": (lambda png: with_chunks(png, chunk(b"eXIf", JUNK)), True),
    "large text": (lambda png: with_chunks(png, chunk(b"zTXt", b"a\0\0" + LARGE)), True),
    "large international text": (lambda png: with_chunks(png, chunk(b"iTXt", b"a\0\1\0\0\0" + LARGE)), True),
    "large profile": (lambda png: with_chunks(png, chunk(b"iCCP", b"a\0\0" + LARGE)), True),
    "profile that is none": (lambda png: with_chunks(png, chunk(b"iCCP", b"a\0\0" + JUNK)), True),
    "profile without content": (lambda png: with_chunks(png, chunk(b"iCCP", b"")), True),
    "text that is not compressed": (lambda png: with_chunks(png, chunk(b"zTXt", JUNK)), True),
    "wrong checksum at the end": (lambda png: png[:-4] + b"abcd", True),
    "text behind the end": (lambda png: png + JUNK, True),
    "chunk of 9 MB": (lambda png: with_chunks(png, chunk(b"prVt", bytes(9_000_000))), False),
    "background of a wrong length": (lambda png: with_chunks(png, chunk(b"bKGD", b"")), False),
    "animation of no length": (lambda png: with_chunks(png, chunk(b"acTL", b"")), False),
    "no end": (lambda png: png[:-12], False),
    "half an end": (lambda png: png[:-6], False),
    "cut off in a text behind the pixels": (lambda png: png[:-12] + chunk(b"tEXt", b"a\0" + JUNK)[:100], False),
    "no chunk behind the pixels": (lambda png: with_chunks(png, chunk(b"\0\1\2\3", b""), is_behind=True), False),
} | {
    f"{name} {kind.decode()} {'behind' if is_behind else 'before'}": (
        lambda png, piece=piece, is_behind=is_behind: with_chunks(png, piece, is_behind=is_behind),
        True,
    )
    for kind, body in ANCILLARY.items()
    for is_behind in (False, True)
    for name, piece in (("wrong checksum", wrong(kind, body)), ("empty", chunk(kind, b"")))
}
JPEG: dict[str, tuple[Callable[[bytes], bytes], bool]] = {
    "EXIF that is none": (lambda jpeg: with_segment(jpeg, 0xE1, b"Exif\0\0" + JUNK), True),
    "EXIF cut off": (lambda jpeg: with_segment(jpeg, 0xE1, b"Exif\0\0MM"), True),
    "profile cut off": (lambda jpeg: with_segment(jpeg, 0xE2, b"ICC_PROFILE\0\1\3" + JUNK), True),
    "profile without number": (lambda jpeg: with_segment(jpeg, 0xE2, b"ICC_PROFILE\0"), True),
    "profile of junk": (lambda jpeg: with_segment(jpeg, 0xE2, b"ICC_PROFILE\0\1\1" + JUNK), True),
    "JFIF cut off": (lambda jpeg: jpeg[:2] + b"\xff\xe0\0\7JFIF\0" + jpeg[20:], True),
    "Adobe cut off": (lambda jpeg: with_segment(jpeg, 0xEE, b"Adobe"), True),
    "Photoshop cut off": (lambda jpeg: with_segment(jpeg, 0xED, b"Photoshop 3.0\x008BIM\3\xed"), True),
    "several images that are none": (lambda jpeg: with_segment(jpeg, 0xE2, b"MPF\0" + JUNK), True),
    "segment of no length": (lambda jpeg: jpeg[:2] + b"\xff\xe5\0\0" + jpeg[2:], False),
}


def both_decoders(data: bytes) -> np.ndarray:
    """Pixels by torchvision, after DALI was seen to read the same."""
    from nvidia.dali import fn, types
    from nvidia.dali.pipeline import Pipeline

    pipeline = Pipeline(batch_size=1, num_threads=1, device_id=None)
    with pipeline:
        file = fn.external_source(name="file", dtype=types.UINT8, ndim=1)
        pipeline.set_outputs(fn.decoders.image(file, output_type=types.RGB, adjust_orientation=False))
    pipeline.build()
    pipeline.feed_input("file", [as_array(data)])
    (pixels,) = pipeline.run()
    expected = decode_rgb(as_array(data)).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(np.asarray(pixels.as_cpu()[0]), expected)
    return expected


@pytest.mark.parametrize("name", PNG)
def test_png_with_damaged_metadata(photos, name):
    damage, is_for_all = PNG[name]
    data = damage(encoded(photos[0][:40, :48], "png"))
    checked = validate_image(data)
    assert (checked.data == data, checked.bare) == (is_for_all, not is_for_all)
    assert (checked.extension, checked.converted) == ("png", False)
    np.testing.assert_array_equal(both_decoders(checked.data), photos[0][:40, :48])


@pytest.mark.parametrize("name", JPEG)
def test_jpeg_with_damaged_metadata(photos, name):
    damage, is_for_all = JPEG[name]
    jpeg = encoded(photos[0][:40, :48])
    data = damage(jpeg)
    checked = validate_image(data)
    assert (checked.data == data, checked.bare) == (is_for_all, not is_for_all)
    np.testing.assert_array_equal(both_decoders(checked.data), both_decoders(jpeg))


@pytest.mark.parametrize("is_lossless", [False, True])
@pytest.mark.parametrize("name", ["junk", "short", "good", "cut off"])
def test_webp_with_damaged_metadata(photos, is_lossless, name):
    webp = encoded(photos[0][:40, :48], "webp", lossless=is_lossless)
    exif = {"junk": JUNK, "short": b"Exif\0\0MM", "good": TURNED, "cut off": JUNK}[name]
    data = riff(webp, (48, 40), 8, (b"EXIF", exif))
    if name == "cut off":
        data = data[:-100]
    checked = validate_image(data)
    assert checked.extension == "webp"
    # DALI reads no lossless ones with EXIF, and nobody those that are shorter than they say
    assert checked.bare == (checked.data != data) == (is_lossless or name == "cut off")
    assert checked.oriented == (name == "good")
    np.testing.assert_array_equal(both_decoders(checked.data), both_decoders(webp))


@pytest.mark.parametrize("tag", [700, 0x8769, 0x8825])  # XMP, EXIF, GPS
def test_tiff_with_damaged_metadata(photos, tag):
    for kind, numbers in ((4, [3]), (4, [10**8]), (12, [0.5]), (3, [1, 2])):
        data = tiff(photos[0][:40, :48], (tag, kind, numbers), (0x0112, 3, [6]))
        checked = validate_image(data)
        np.testing.assert_array_equal(both_decoders(checked.data), np.rot90(photos[0][:40, :48], -1))
        assert (checked.width, checked.height, checked.oriented) == (40, 48, False)  # Pillow turns TIFF


@pytest.mark.parametrize("extension", ["jpg", "png", "webp"])
def test_orientation_is_found_where_pillow_gives_up(photos, extension):
    data = encoded(photos[0][:40, :48], extension)
    if extension == "png":
        data = with_chunks(data, chunk(b"eXIf", TURNED[6:]), wrong(b"tEXt", b"a\0b"))
    elif extension == "webp":
        data = riff(data, (48, 40), 8, (b"EXIF", TURNED), (b"ABCD", JUNK))[:-50]
    else:
        data = with_segment(with_segment(data, 0xE1, TURNED), 0xEE, b"Adobe")
    assert validate_image(data).oriented
    turned = validate_image(data, ImageRules(orient=True))
    assert (turned.width, turned.height) == (40, 48)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda png: png[:29] + b"abcd" + png[33:], "the checksum of chunk IHDR is wrong"),
        (lambda png: png[:-16] + b"abcd" + png[-12:], "the checksum of chunk IDAT is wrong"),
        (lambda png: with_chunks(png, chunk(b"CRIT", b"")), "has a chunk b'CRIT', which no decoder knows"),
        (lambda png: png[:33] + png[-12:], "has no pixels"),
        (lambda png: SIGNATURE + png[33:], "begins with another chunk than its header"),
        (lambda png: png[:33] + png[8:], "has no header that can be read"),
        (lambda png: png[:-40], "the compressed data is not as long as the image"),
    ],
)
def test_what_is_said_of_damaged_png(photos, damage, reason):
    with pytest.raises(ValueError, match=f"^cannot be decoded: {reason}"):
        validate_image(damage(encoded(photos[0][:40, :48], "png")))


def test_what_is_said_of_other_files(photos):
    jpeg, webp = encoded(photos[0][:40, :48]), encoded(photos[0][:40, :48], "webp")
    for data, reason in (
        (jpeg[:200], "cannot be decoded: ends before its pixels begin"),
        (jpeg[:2] + b"\xff\xe5\0\xffab" + jpeg[2:], "cannot be decoded: has no segment at byte 259"),
        (webp[: len(webp) // 2], "cannot be decoded: cut off: its data ends before its pixels do"),
        (encoded(photos[0][:40, :48], "tiff")[:60], "cannot be decoded: "),
        (b"<html>404</html>", "not an image, or of an unknown format"),
    ):
        with pytest.raises(ValueError, match=f"^{reason}"):
            validate_image(data)


@pytest.mark.parametrize("verify", ["full", "header"])
def test_a_missing_end_is_no_missing_pixel(photos, verify):
    jpeg = encoded(photos[0][:100, :200])
    for data in (jpeg[:-2], jpeg[:-1]):
        with pytest.raises(ValueError, match=r"its end marker is missing, .* its pixels are whole"):
            validate_image(data, ImageRules(verify=verify))
    for cut in (3, 10, 500):
        with pytest.raises(ValueError, match="cut off: its data ends before its pixels do"):
            validate_image(jpeg[:-cut], ImageRules(verify=verify))
    progressive = encoded(photos[0][:40, :48], progressive=True)
    with pytest.raises(ValueError, match="its last scans may be missing too"):
        validate_image(progressive[:-2], ImageRules(verify=verify))


def test_png_without_metadata_has_the_same_pixels(photos):
    for pixels in (photos[0][:40, :48], photos[0][:40, :48, 0]):
        png = encoded(pixels, "png")
        bare = read_png(with_chunks(png, *(chunk(kind, body) for kind, body in ANCILLARY.items()))).without_metadata()
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(bare))), pixels)
        assert len(bare) <= len(png)


def test_pages_are_counted(photos):
    pages = [Image.fromarray(photo[:40, :48]) for photo in photos]
    for extension in ("gif", "webp", "png", "tiff", "mpo"):
        for others in ([], pages[1:]):
            buffer = io.BytesIO()
            pages[0].save(buffer, format=extension, save_all=True, append_images=others)
            assert validate_image(buffer.getvalue()).paged == bool(others)
