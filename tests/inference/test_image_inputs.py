"""What may be given to a Predictor as an image."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cbd_fast.errors import InputError
from tests.inference.conftest import assert_alike, png


def test_all_kinds_of_images_of_the_same_pixels_agree(predictor, pixels, tmp_path):
    for number, image in enumerate(pixels):
        (tmp_path / f"{number}.png").write_bytes(png(image))
    paths = [tmp_path / f"{number}.png" for number in range(len(pixels))]
    expected = predictor(map(str, paths))
    assert [prediction.name for prediction in expected] == list(map(str, paths))
    opened = [Image.open(path) for path in paths]
    kinds = {
        "pathlib": paths,
        "bytes": [path.read_bytes() for path in paths],
        "bytearray": [bytearray(path.read_bytes()) for path in paths],
        "pil": [Image.fromarray(image) for image in pixels],
        "pil, opened": opened,
        "array": pixels,
        "array, not contiguous": [np.asfortranarray(image) for image in pixels],
        "array, mirrored twice": [image[::-1, ::-1].copy()[::-1, ::-1] for image in pixels],
        "tensor": [torch.from_numpy(image).permute(2, 0, 1) for image in pixels],
        "names in an array": np.array(list(map(str, paths))),
        "generator": (path for path in paths),
        "mixed": [paths[0], png(pixels[1]), pixels[2], Image.fromarray(pixels[3]), opened[4], str(paths[5])],
    }
    for images in kinds.values():
        predictions = predictor(images)
        # pixels that are not decoded are cut, then resized; so is what DALI has decoded the box of
        assert_alike(predictions, expected, tolerance=2e-3)
    assert [prediction.name for prediction in predictor(pixels[:2])] == ["image 0", "image 1"]
    assert [prediction.name for prediction in predictor([pixels[0], paths[1], opened[2]])] == [
        "image 0",
        str(paths[1]),
        str(paths[2]),
    ]


def test_whole_batches_in_one_array(predictor, pixels):
    images = [image[:100, :120] for image in pixels]
    expected = predictor(images)
    assert_alike(predictor(np.stack(images)), expected)
    assert_alike(predictor(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)), expected)


def test_a_single_image(predictor, files, pixels):
    expected = predictor([files[0]])
    assert len(expected) == 1
    for single in (files[0], Path(files[0]).read_bytes(), Image.open(files[0])):
        assert_alike(predictor(single), expected, tolerance=2e-3)
    assert_alike(predictor(pixels[0]), predictor([pixels[0]]))
    assert_alike(predictor(torch.from_numpy(pixels[0]).permute(2, 0, 1)), predictor([pixels[0]]))


def test_open_files_are_images_too_and_not_lines(predictor, image_folder):
    path = sorted(image_folder.glob("test/*/*"))[0]
    expected = predictor([path])
    with open(path, "rb") as file:
        assert_alike(predictor(file), expected)
        assert_alike(predictor([io.BytesIO(path.read_bytes())]), expected)


def test_other_modes_are_seen_as_a_shard_would_store_them(predictor, pixels):
    photo = Image.fromarray(pixels[1])
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees, which is ignored as in training
    grey = photo.convert("L")
    transparent = photo.copy()
    transparent.putalpha(grey)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    images = {
        "grey": (png(grey), grey, np.asarray(grey), torch.from_numpy(np.array(grey))[None]),
        "grey jpeg": (png(grey, "JPEG", quality=100), grey),
        "rgb, exif": (png(photo, "JPEG", quality=100, subsampling=0, exif=exif), photo),
        "cmyk": (png(photo.convert("CMYK"), "JPEG", quality=100, subsampling=0), photo.convert("CMYK")),
        "palette": (png(photo.convert("P")), photo.convert("P"), photo.convert("P").convert("RGB")),
        "alpha": (png(transparent), transparent, photo),
        "16 bits": (png(deep), deep, grey),
        "bit": (png(photo.convert("1")), photo.convert("1")),
        "gif": (png(photo.convert("P"), "GIF"), photo.convert("P")),
        "bmp, tiff, webp": (png(photo, "BMP"), png(photo, "TIFF"), png(photo, "WEBP", lossless=True), photo),
    }
    for name, kinds in images.items():
        first, *others = (predictor(kind)[0] for kind in kinds)
        assert first.error is None, name
        for other in others:
            assert_alike([other], [first], tolerance=0.02)
    assert predictor(photo)[0].probabilities != predictor(grey)[0].probabilities


def test_floats_have_no_known_range(predictor, pixels):
    prediction = predictor(Image.fromarray(np.zeros((8, 8), np.float32)))[0]
    assert "floating-point" in prediction.error


@pytest.mark.parametrize(
    ("image", "what"),
    [
        (3, "int"),
        (None, "NoneType"),
        (("a.jpg", 3), "tuple"),
        (np.zeros((8, 8, 3), np.float32), r"ndarray, float32, of shape \(8, 8, 3\)"),
        (np.zeros((8, 8, 4), np.uint8), r"ndarray, uint8, of shape \(8, 8, 4\)"),
        (np.zeros(8, np.uint8), r"ndarray, uint8, of shape \(8,\)"),
        (torch.zeros(3, 8, 8), r"Tensor, torch.float32, of shape \(3, 8, 8\).*load_model"),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), r"Tensor, torch.uint8, of shape \(8, 8, 3\)"),
    ],
)
def test_what_is_no_image_is_refused(predictor, image, what, files):
    with pytest.raises(InputError, match=f"image 0: of type {what}"):
        predictor([image])
    with pytest.raises(InputError, match=f"image 1: of type {what}"):
        predictor([files[0], image])
    assert predictor(files[0])[0].error is None  # it goes on being usable


def test_pixels_may_be_changed_and_images_closed_while_more_are_asked_for(predictor, pixels, tmp_path):
    (tmp_path / "image.png").write_bytes(png(pixels[0]))

    def reused():
        frame = np.empty((100, 120, 3), np.uint8)
        for image in pixels:
            frame[:] = image[:100, :120]
            yield frame
        frame[:] = 0

    def closed():
        for _ in range(3):
            with Image.open(tmp_path / "image.png") as image:
                yield image

    assert_alike(predictor(reused()), predictor([image[:100, :120] for image in pixels]))
    assert_alike(predictor(closed()), predictor([pixels[0]] * 3))
