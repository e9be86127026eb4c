from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from cbd_fast.loading.augment import Augmentation
from cbd_fast.loading.decode_dali import DaliDecoder
from cbd_fast.loading.decode_torch import TorchDecoder

from .conftest import encoded
from .test_augment import plan_of
from .test_decode_torch import as_array

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pool():
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture(scope="module")
def pictures(photos):
    """Ten files of several formats, with their sizes."""
    rng = np.random.default_rng(0)
    files, sizes = [], []
    for number in range(10):
        height, width = rng.integers(100, 420, 2)
        pixels = photos[number % 2][:height, :width]
        if number == 3:
            pixels = pixels[:, :, 1]
        files.append(as_array(encoded(pixels, ["jpg", "png", "webp", "jpg"][number % 4])))
        sizes.append((height, width))
    return files, tuple(sizes)


def decoders(pool, pads, device=CPU, image_size=64, batch_size=10):
    reference = TorchDecoder(pool, image_size)
    options = {"batch_size": batch_size, "image_size": image_size, "pads": pads, "num_threads": 2}
    return reference, DaliDecoder(reference, device=device, **options)


AUGMENTATIONS = {
    "random_resized_crop": Augmentation(),
    "pad_and_crop": Augmentation(crop="pad_and_crop", padding=8),
    "center": Augmentation(crop="center"),
}


def check_agreement(pool, pictures, name, device, tolerance):
    files, sizes = pictures
    augmentation = AUGMENTATIONS[name]
    reference, dali = decoders(pool, augmentation.pads, device)
    for step in range(5):
        plan = plan_of(augmentation, sizes, step=step, image_size=64)
        expected, crops = reference(files, plan), dali(files, plan)
        assert crops.bad == {}
        assert crops.pixels.dtype == torch.uint8
        assert crops.pixels.device.type == device.type
        difference = (crops.pixels.cpu().float() - expected.pixels.float()).abs().mean(dim=(1, 2, 3))
        assert difference.max() <= tolerance, f"step {step}: {difference}"


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_agrees_with_the_reference_on_the_cpu(pool, pictures, name):
    check_agreement(pool, pictures, name, CPU, tolerance=1.0)


@pytest.mark.gpu
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_agrees_with_the_reference_on_the_gpu(pool, pictures, name):
    check_agreement(pool, pictures, name, torch.device("cuda", 0), tolerance=2.0)


def test_whole_pictures_then_boxes_give_the_same_as_regions(pool, pictures):
    """The graph that a GPU runs, which decodes whole pictures, on the CPU."""
    files, sizes = pictures
    _, regions = decoders(pool, pads=False)
    _, whole = decoders(pool, pads=True)
    plan = plan_of(Augmentation(), sizes, image_size=64)
    difference = regions(files, plan).pixels.float() - whole(files, plan).pixels.float()
    assert difference.abs().mean() <= 1.0


def test_smaller_batches_and_equal_pixels_in_any_company(pool, pictures):
    files, sizes = pictures
    _, dali = decoders(pool, pads=False)
    plan = plan_of(Augmentation(), sizes, image_size=64)
    whole = dali(files, plan).pixels
    part = dali(files[4:7], plan.take(np.arange(4, 7))).pixels
    assert torch.equal(part, whole[4:7])


def test_goes_on_after_a_bad_picture(pool, pictures):
    files, sizes = pictures
    reference, dali = decoders(pool, pads=False)
    plan = plan_of(Augmentation(), sizes, image_size=64)
    expected = dali(files, plan).pixels
    bad = dali([*files[:2], files[2][:100], *files[3:]], plan)
    assert list(bad.bad) == [2]
    assert torch.equal(bad.pixels[5], reference(files, plan).pixels[5])
    assert torch.equal(dali(files, plan).pixels, expected)
