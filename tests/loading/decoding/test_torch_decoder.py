import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from cbd_fast.loading.decoding.torch_decoder import TorchDecoder, crop_and_resize
from cbd_fast.shards.reference_decoder import decode_rgb
from tests.helpers import as_array, encoded, plan_of


def decode_crop(data: np.ndarray, box: np.ndarray, image_size: int) -> torch.Tensor:
    return crop_and_resize(decode_rgb(data).permute(1, 2, 0), box, image_size)


@pytest.mark.parametrize("box", [(10, 20, 300, 400), (0, 0, 427, 640), (100, 100, 50, 30), (5, 5, 224, 224)])
@pytest.mark.parametrize("extension", ["jpg", "png", "webp"])
def test_equals_torchvisions_resized_crop(photos, box, extension):
    data = as_array(encoded(photos[0], extension))
    expected = v2.functional.resized_crop(decode_rgb(data), *box, size=[224, 224], antialias=True)
    crop = decode_crop(data, np.array(box), 224)
    assert crop.shape == (224, 224, 3)
    assert crop.dtype == torch.uint8
    assert torch.equal(crop.permute(2, 0, 1), expected)


def test_is_close_to_pillows_resized_crop(photos):
    top, left, height, width = 10, 20, 300, 400
    image = Image.fromarray(photos[0])
    box = (left, top, left + width, top + height)
    expected = np.asarray(image.resize((224, 224), Image.Resampling.BILINEAR, box=box), float)
    crop = decode_crop(as_array(encoded(photos[0], "png")), np.array([top, left, height, width]), 224)
    assert np.abs(crop.numpy() - expected).mean() < 1


def test_outside_the_image_is_black(photos):
    pixels = photos[0][:32, :32]
    data = as_array(encoded(pixels, "png"))
    crop = decode_crop(data, np.array([-4, 3, 32, 32]), 32).numpy()
    assert (crop[:4] == 0).all()
    assert (crop[:, -3:] == 0).all()
    np.testing.assert_array_equal(crop[4:, :-3], pixels[:-4, 3:])


def test_equals_torchvisions_padded_crop_after_resizing(photos):
    data = as_array(encoded(photos[0][:64, :64], "png"))
    padded = v2.functional.pad(decode_rgb(data), [8, 8, 8, 8])
    expected = v2.functional.resized_crop(padded, 8 - 8, 8 + 6, 64, 64, size=[32, 32], antialias=True)
    assert torch.equal(decode_crop(data, np.array([-8, 6, 64, 64]), 32).permute(2, 0, 1), expected)


def test_a_box_beside_the_image_is_black(photos):
    data = as_array(encoded(photos[0][:32, :32], "png"))
    assert not decode_crop(data, np.array([40, 0, 32, 32]), 32).any()
    assert not decode_crop(data, np.array([0, -50, 32, 32]), 16).any()


def test_grey_and_oriented_images(photos):
    grey = decode_crop(as_array(encoded(photos[0][:, :, 0])), np.array([0, 0, 427, 640]), 64)
    assert torch.equal(grey[:, :, 0], grey[:, :, 1])
    exif = Image.Exif()
    exif[0x0112] = 8
    box = np.array([300, 500, 100, 100])  # outside the image if it were turned
    plain, turned = (decode_crop(as_array(encoded(photos[0], **tags)), box, 64) for tags in ({}, {"exif": exif}))
    assert torch.equal(plain, turned)


def test_a_batch_names_its_bad_images(photos):
    good, cut = as_array(encoded(photos[0])), as_array(encoded(photos[0])[:3000])
    plan = plan_of(sizes=((427, 640),) * 4)
    crops = TorchDecoder(32)([good, cut, good, np.zeros(1, np.uint8)], plan)
    assert crops.pixels.shape == (4, 32, 32, 3)
    assert sorted(crops.bad) == [1, 3]
    assert all(crops.bad.values())
    assert not any("/" in reason for reason in crops.bad.values())
    assert torch.equal(crops.pixels[2], decode_crop(good, plan.boxes[2], 32))
