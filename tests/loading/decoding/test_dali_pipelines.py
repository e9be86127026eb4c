import numpy as np
import pytest
import torch

from cbd_fast.loading.decoding.dali_pipelines import TASKS, build_pipeline
from cbd_fast.shards.reference_decoder import decode_rgb
from tests.helpers import encoded


@pytest.mark.parametrize("task", TASKS)
def test_each_does_its_part(photos, task):
    pixels = photos[0][:90, :120]
    data = np.frombuffer(encoded(pixels), np.uint8).copy()
    image = decode_rgb(data).permute(1, 2, 0)
    pipeline = build_pipeline(task, batch_size=2, num_threads=1, device=torch.device("cpu"), image_size=32)
    inputs = {"images": [image.numpy() if task == "crop_images" else data]}
    if task != "decode":
        inputs |= {"anchors": [np.array([10, 20], np.int32)], "shapes": [np.array([60, 80], np.int32)]}
    (output,) = pipeline.run(**inputs)
    result = torch.from_dlpack(output[0]).float()
    box = image[10:70, 20:100]
    if task.startswith("crop"):
        size = (32, 32)
        moved = box.permute(2, 0, 1)[None].float()
        box = torch.nn.functional.interpolate(moved, size, mode="bilinear", antialias=True)[0].permute(1, 2, 0)
    expected = image if task == "decode" else box
    assert result.shape == expected.shape
    assert (result - expected.float()).abs().mean() < 1
