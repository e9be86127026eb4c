import numpy as np
import pytest
import torch

from cbd_fast.loading.augment import Augmentation
from cbd_fast.loading.tensor_transforms import to_model_input
from tests.helpers import plan_of


def pixels_of(num=8, size=5):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (num, size, size, 3), dtype=np.uint8))


@pytest.mark.parametrize("jitter", [0.0, 1.0])
@pytest.mark.parametrize("mean", [None, (0.5, 0.4, 0.3)])
def test_equals_plain_numpy(jitter, mean):
    plan = plan_of(Augmentation(color_jitter=jitter, mean=mean, std=(0.2, 0.3, 0.4)))
    pixels = pixels_of()
    images = to_model_input(pixels.clone(), plan)
    assert images.shape == (8, 3, 5, 5)
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    colors = np.broadcast_to(plan.colors, (8, 3, 4)).astype(np.float64)
    for number in range(8):
        image = pixels[number].numpy().astype(float)
        if plan.flips[number]:
            image = image[:, ::-1]
        expected = image @ colors[number, :, :3].T + colors[number, :, 3]
        expected = expected.clip(plan.color_range[0], plan.color_range[1])
        np.testing.assert_allclose(images[number].permute(1, 2, 0).numpy(), expected, atol=1e-4)
    assert plan.flips.any()
    assert not plan.flips.all()


def test_values_are_in_the_unit_interval():
    for jitter in (0.0, 1.0):
        images = to_model_input(pixels_of(64), plan_of(Augmentation(color_jitter=jitter), sizes=((9, 9),) * 64))
        assert images.min() >= 0
        assert images.max() <= 1


def test_one_image_alone_is_coloured_as_in_a_batch():
    plan, pixels = plan_of(Augmentation(color_jitter=1.0)), pixels_of()
    together = to_model_input(pixels.clone(), plan)
    for number in range(8):
        part = plan.take(np.array([number]))
        torch.testing.assert_close(to_model_input(pixels[number : number + 1].clone(), part)[0], together[number])
        out = torch.empty((1, 5, 5, 3))
        to_model_input(pixels[number : number + 1].clone(), part, out)
        torch.testing.assert_close(out[0].permute(2, 0, 1), together[number])
