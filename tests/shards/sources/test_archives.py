import io

import numpy as np
import pytest
from PIL import Image

from cbd_fast.errors import InputError
from cbd_fast.shards.sources.archives import cifar_source, digits_source


def test_digits():
    source = digits_source(3)
    by_split = {"train": [], "test": []}
    for image in source.images():
        by_split[image.split].append(image)
    counts = {split: [sum(p.label == c for p in images) for c in range(10)] for split, images in by_split.items()}
    assert counts == {"train": [124, 74, 44, 26, 16, 9, 5, 3, 2, 1], "test": [50] * 10}
    train, test = ({p.name for p in by_split[split]} for split in ("train", "test"))
    assert not train & test
    assert {p.name for p in digits_source(4).images() if p.split == "test"} != test
    pixels = np.asarray(Image.open(io.BytesIO(by_split["train"][0].read())))
    assert (pixels.shape, pixels.dtype) == ((32, 32), np.uint8)


def test_cifar_without_archive_says_what_to_do(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    monkeypatch.setattr(CIFAR10, "url", "file:///nowhere/cifar-10-python.tar.gz")
    with pytest.raises(InputError, match=r"holds no whole cifar-10-batches-py, .* put cifar-10-python\.tar\.gz there"):
        cifar_source("cifar10", tmp_path)
