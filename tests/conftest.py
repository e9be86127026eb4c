"""What several test modules share: images, shards and the GPU marker."""

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from sklearn.datasets import load_sample_images

from cbd_fast.shards.sources.archives import digits_source
from cbd_fast.shards.sources.image_folder import folder_source
from cbd_fast.shards.writing.dataset_writer import write_dataset
from cbd_fast.shards.writing.options import WriteOptions
from tests.helpers import cut, encoded


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name in ("end_to_end", "benchmarks"):  # they run whole commands
            item.add_marker("slow")
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU here"))


@pytest.fixture(autouse=True)
def _fresh_accelerator():
    """Each test chooses device and precision anew, which Accelerate would keep."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def photos() -> list[np.ndarray]:
    """Two real photographs, ``(427, 640, 3)`` uint8, shipped inside scikit-learn."""
    return load_sample_images().images


@pytest.fixture(scope="session")
def image_folder(photos, tmp_path_factory) -> Path:
    """``train`` and ``test`` with three classes of 12, 5 and 2 (2 each in test) cuts of photographs, JPEG and PNG."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    counts = {"train": {"ant": 12, "bee": 5, "cat": 2}, "test": {"ant": 2, "bee": 2, "cat": 2}}
    for split, classes in counts.items():
        for label, (name, count) in enumerate(classes.items()):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = cut(photos[(label + number) % 2], rng)
                extension = "png" if number % 4 == 1 else "jpg"
                (root / split / name / f"{number}.{extension}").write_bytes(encoded(pixels, extension))
    return root


@pytest.fixture(scope="session")
def photo_shards(image_folder, tmp_path_factory) -> Path:
    """The images of ``image_folder`` as shards."""
    out = tmp_path_factory.mktemp("shards") / "photos"
    source = folder_source({split: image_folder / split for split in ("train", "test")})
    write_dataset(source, out, WriteOptions(), num_workers=2)
    return out


@pytest.fixture(scope="session")
def pieces(photos) -> list[bytes]:
    """Some small JPEGs."""
    rng = np.random.default_rng(0)
    return [encoded(cut(photos[number % 2], rng)) for number in range(8)]


@pytest.fixture(scope="session")
def digits_shards(tmp_path_factory) -> Path:
    """The long-tailed handwritten digits."""
    out = tmp_path_factory.mktemp("shards") / "digits_lt"
    write_dataset(digits_source(0), out, WriteOptions(), num_workers=2)
    return out
