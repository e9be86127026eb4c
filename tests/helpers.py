"""The tools as users type them, and what stock readers make of their shards."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import webdataset
from nvidia.dali import fn, types
from nvidia.dali.pipeline import Pipeline

from cbd_fast.shards.index import ClassIndex
from cbd_fast.shards.manifest import read_manifest

REPOSITORY = Path(__file__).parent.parent


def command_of(tool, *arguments):
    return [sys.executable, f"tools/{tool}.py", *map(str, arguments)]


def run(tool, *arguments, **options):
    command = command_of(tool, *arguments)
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, **options)


def make_shards(*arguments, **options):
    return run("make_shards", *arguments, **options)


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def check_by_stock_readers(folder: Path, expected: dict[str, list[int]]) -> None:
    """Stock webdataset and DALI read every split; ``expected`` has the sorted labels of each."""
    manifest = read_manifest(folder)
    assert {split: record.num_images for split, record in manifest.splits.items()} == {
        split: len(labels) for split, labels in expected.items()
    }
    for split, record in manifest.splits.items():
        paths = [str(folder / shard.file) for shard in record.shards]
        rows = np.sort(ClassIndex.open(folder / record.index, len(manifest.classes)).rows, order=["shard", "offset"])
        stock = webdataset.WebDataset(paths, shardshuffle=False).decode("torchrgb8").to_tuple("jpg;png;webp", "cls")
        samples = [(image.shape[1:], label) for image, label in stock]
        assert sorted(label for _, label in samples) == expected[split]
        assert [(*size, label) for size, label in samples] == rows[["height", "width", "label"]].tolist()

        pipeline = Pipeline(batch_size=len(rows), num_threads=1, device_id=None)
        with pipeline:
            data, label = fn.readers.webdataset(
                paths=paths, ext=["jpg;png;webp", "cls"], missing_component_behavior="error"
            )
            pipeline.set_outputs(fn.decoders.image(data, output_type=types.RGB, adjust_orientation=False), label)
        images, labels = pipeline.run()
        assert [int(bytes(np.asarray(each))) for each in labels] == rows["label"].tolist()
        assert [np.asarray(each).shape[:2] for each in images] == rows[["height", "width"]].tolist()
