import gc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from cbd_fast.loading.augment import Augmentation
from cbd_fast.loading.decoding.dali_decoder import DaliDecoder
from cbd_fast.loading.decoding.dali_pipelines import _PIPELINES
from cbd_fast.loading.decoding.torch_decoder import TorchDecoder
from tests.helpers import as_array, encoded, plan_of

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images(photos):
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


def decoders(allow_padding, device=CPU, image_size=64, batch_size=10, **options):
    reference = TorchDecoder(image_size)
    options |= {"batch_size": batch_size, "image_size": image_size, "allow_padding": allow_padding}
    return reference, DaliDecoder(reference, device=device, **options)


AUGMENTATIONS = {
    "random_resized_crop": Augmentation(),
    "pad_and_crop": Augmentation(crop="pad_and_crop", padding=8),
    "center": Augmentation(crop="center"),
}


def check_agreement(images, name, device, tolerance, **options):
    files, sizes = images
    augmentation = AUGMENTATIONS[name]
    reference, dali = decoders(augmentation.allow_padding, device, **options)
    for step in range(5):
        plan = plan_of(augmentation, sizes, step=step, image_size=64)
        expected, crops = reference(files, plan), dali(files, plan)
        assert crops.bad == {}
        assert crops.pixels.dtype == torch.uint8
        assert crops.pixels.device.type == device.type
        difference = (crops.pixels.cpu().float() - expected.pixels.float()).abs().mean(dim=(1, 2, 3))
        assert difference.max() <= tolerance, f"step {step}: {difference}"


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_agrees_with_the_reference_on_the_cpu(images, name):
    check_agreement(images, name, CPU, tolerance=1.0)


@pytest.mark.gpu
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_agrees_with_the_reference_on_the_gpu(images, name):
    check_agreement(images, name, torch.device("cuda", 0), tolerance=2.0)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_graph_of_the_gpu_agrees_too(images, name):
    """Whole images decoded, cut and resized by DALI, here on the CPU."""
    check_agreement(images, name, CPU, tolerance=1.0, does_all=True)


@pytest.mark.parametrize("does_all", [False, True])
def test_threads_do_not_disturb_each_other(images, does_all):
    files, sizes = images
    _, dali = decoders(allow_padding=False, does_all=does_all)
    plans = [plan_of(Augmentation(), sizes, step=step, image_size=64) for step in range(12)]
    expected = [dali(files, plan).pixels for plan in plans]
    with ThreadPoolExecutor(4) as pool:
        for crops, alone in zip(pool.map(lambda plan: dali(files, plan), plans), expected, strict=True):
            assert torch.equal(crops.pixels, alone)


def test_smaller_batches_and_equal_pixels_in_any_company(images):
    files, sizes = images
    _, dali = decoders(allow_padding=False)
    plan = plan_of(Augmentation(), sizes, image_size=64)
    whole = dali(files, plan).pixels
    part = dali(files[4:7], plan.take(np.arange(4, 7))).pixels
    assert torch.equal(part, whole[4:7])


def test_goes_on_after_a_bad_image(images):
    files, sizes = images
    reference, dali = decoders(allow_padding=False)
    plan = plan_of(Augmentation(), sizes, image_size=64)
    expected = dali(files, plan).pixels
    bad = dali([*files[:2], files[2][:100], *files[3:]], plan)
    assert list(bad.bad) == [2]
    assert torch.equal(bad.pixels[5], reference(files, plan).pixels[5])
    assert torch.equal(dali(files, plan).pixels, expected)


@pytest.mark.parametrize("does_all", [False, True])
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_images_that_were_decoded_before_give_the_same_crops(images, name, does_all):
    files, sizes = images
    _, dali = decoders(AUGMENTATIONS[name].allow_padding, does_all=does_all)
    whole = dali.whole(files, np.array(sizes))
    assert [image.shape for image in whole] == [(*size, 3) for size in sizes]
    plan = plan_of(AUGMENTATIONS[name], sizes, image_size=64)
    expected = dali(files, plan).pixels
    for chosen in (range(0, 10, 3), range(10)):
        mixed = [whole[number] if number in chosen else file for number, file in enumerate(files)]
        crops = dali(mixed, plan)
        assert crops.bad == {}
        # where DALI decodes only the box, its edges may differ in the last bits
        tolerance = 0 if does_all or name == "pad_and_crop" else 4
        assert (crops.pixels.int() - expected.int()).abs().max() <= tolerance


@pytest.mark.parametrize("does_all", [False, True])
def test_whole_images_but_for_the_bad_one(images, does_all):
    files, sizes = images
    _, dali = decoders(allow_padding=False, does_all=does_all)
    expected = dali.whole(files, np.array(sizes))
    whole = dali.whole([*files[:2], files[2][:100], *files[3:]], np.array(sizes))
    assert isinstance(whole[2], str)
    assert all(torch.equal(whole[number], expected[number]) for number in range(10) if number != 2)


def test_pipelines_end_with_their_threads(images):
    files, sizes = images
    _, dali = decoders(allow_padding=False)
    plan = plan_of(Augmentation(), sizes, image_size=64)
    dali(files, plan)
    gc.collect()
    before = len(_PIPELINES._alive)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: dali(files, plan), range(12)))
        assert before < len(_PIPELINES._alive) <= before + 3
    dali.drop_unused()
    assert len(_PIPELINES._alive) == before
    dali(files, plan)  # those of this thread are still there
    assert len(_PIPELINES._alive) == before
