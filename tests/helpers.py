"""What several test modules need: images, small runs, commands as users type them, other readers."""

import filecmp
import io
import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cbd_fast.config.schema import Config
from cbd_fast.loading.augment import Augmentation, make_plan
from cbd_fast.shards.index import ClassIndex
from cbd_fast.shards.manifest import read_manifest
from cbd_fast.shards.reader import ShardReader
from cbd_fast.training.trainer import Trainer
from cbd_fast.ui.dashboard import NullDashboard

REPOSITORY = Path(__file__).parent.parent


SMALL_RUN = {
    "data": {"num_classes": 3, "image_size": 32},
    "model": {"backbone": "small_convnet"},
    "optimization": {"steps": 5, "global_batch": 6},
}
DIGITS_RUN = {
    "data": {"num_classes": 10, "image_size": 32, "augmentation": {"crop": "pad_and_crop", "flip": False}},
    "model": {"backbone": "small_convnet"},
    "optimization": {"steps": 20, "global_batch": 16, "base_learning_rate": 0.05},
    "stage_one": {"teachers": [{"seed": 1, "color_jitter": 0.5}]},
    "stage_two": {"color_jitter": 0.5},
    "runtime": {"log_every": 1, "num_threads": min(2, len(os.sched_getaffinity(0)))},
}


def config_of(output="run", shards="s", *, base=SMALL_RUN, **sections) -> Config:
    """A small run; sections are merged with those of ``base``, single settings replace them."""
    settings = {"output": str(output)} | base | {name: value for name, value in sections.items() if name not in base}
    for name in base.keys() & sections.keys():
        settings[name] = base[name] | sections[name]
    settings["data"] = settings["data"] | {"shards": str(shards)}
    return Config.model_validate(settings)


def digits_config(output, shards, **sections) -> Config:
    """A run of some seconds on the handwritten digits."""
    return config_of(output, shards, base=DIGITS_RUN, **sections)


def digits_config_file(folder, shards, **sections) -> Path:
    """The file of a run on the digits as users write it, with the run's folder beside it."""
    data = {"num_classes": 10, "augmentation": {"crop": "pad_and_crop"}}
    path = folder / "config.yaml"
    path.write_text(config_of(folder / "run", shards, data=data, **sections).to_yaml())
    return path


def metrics_of(output) -> list[dict]:
    """The records of a run."""
    return [json.loads(line) for line in (Path(output) / "metrics.jsonl").read_text().splitlines()]


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def images_read(run: Path) -> dict[tuple[str, int, int], tuple]:
    """Image, box, flip and colours by model, step and place in the global batch, of all processes and launches."""
    read: dict[tuple[str, int, int], tuple] = {}
    for path in run.glob("batches.rank-*.jsonl"):
        for line in read_lines(path):
            num_images = len(line["indices"])
            colors = line["colors"] * (num_images if len(line["colors"]) == 1 else 1)
            images = zip(line["positions"], line["indices"], line["boxes"], line["flips"], colors, strict=True)
            for position, *image in images:
                # a step that was done twice must have read the same
                assert read.setdefault((line["model"], line["step"], position), image) == image
    return read


def run_in_process(config: Config, dashboard=None) -> list[dict]:
    """Trains in this process, silently, and returns the records of the run."""
    Trainer(config, dashboard=dashboard or NullDashboard()).fit()
    return metrics_of(config.output)


@contextmanager
def registered(registry, name, entry):
    """Something of a user's own under a name, as long as the block runs."""
    registry.register(name)(entry)
    try:
        yield
    finally:
        del registry._entries[name]


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


OPTIONS = {"batch_size": 6, "image_size": 32, "device": "cpu", "num_threads": 2}


def same(first, second):
    return (
        torch.equal(first.images, second.images)
        and torch.equal(first.labels, second.labels)
        and torch.equal(first.ids, second.ids)
        and first.step == second.step
    )


def with_bad_images(photo_shards, folder, num_bad, split="train", label=0):
    """A copy in which the first images of a class are overwritten; returns it and their indices."""
    copy = shutil.copytree(photo_shards, folder / "copy")
    shards = ShardReader(copy, split)
    indices = list(range(int(shards.index.starts[label]), int(shards.index.starts[label]) + num_bad))
    for index in indices:
        entry = shards.index.entries[index]
        with open(shards.paths[int(entry["shard"])], "r+b") as file:
            file.seek(int(entry["offset"]))
            file.write(b"\0" * int(entry["size"]))
    return copy, indices


def plan_of(augmentation=None, sizes=((100, 80),) * 8, positions=None, seed=0, step=0, image_size=32):
    sizes = np.array(sizes)
    positions = np.arange(len(sizes)) if positions is None else positions
    return make_plan(
        augmentation or Augmentation(color_jitter=1.0),
        indices=np.arange(len(sizes)),
        sizes=sizes,
        image_size=image_size,
        seed=seed,
        step=step,
        positions=positions,
    )


def as_array(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8).copy()


def scalars(folder) -> dict[str, list[tuple[int, float]]]:
    """Step and value of each name that TensorBoard finds in a folder, without those below."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def cut(photo: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random piece of a photograph, 60 to 200 pixels a side."""
    height, width = rng.integers(60, 200, 2)
    top, left = rng.integers(0, photo.shape[0] - height), rng.integers(0, photo.shape[1] - width)
    return photo[top : top + height, left : left + width]


def encoded(pixels: np.ndarray, extension: str = "jpg", **options) -> bytes:
    """An image file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format={"jpg": "JPEG"}.get(extension, extension.upper()), **options)
    return buffer.getvalue()


def check_by_stock_readers(folder: Path, expected: dict[str, list[int]]) -> None:
    """Stock webdataset and DALI read every split; ``expected`` has the sorted labels of each."""
    # here, as they take long to import
    import webdataset
    from nvidia.dali import fn, types
    from nvidia.dali.pipeline import Pipeline

    manifest = read_manifest(folder)
    assert {split: record.num_images for split, record in manifest.splits.items()} == {
        split: len(labels) for split, labels in expected.items()
    }
    for split, record in manifest.splits.items():
        paths = [str(folder / shard.file) for shard in record.shards]
        rows = np.sort(ClassIndex.open(folder / record.index, len(manifest.classes)).entries, order=["shard", "offset"])
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


def assert_same_files(first, second):
    files = sorted(path.name for path in first.iterdir())
    assert files == sorted(path.name for path in second.iterdir())
    same, different, missing = filecmp.cmpfiles(first, second, files, shallow=False)
    assert (sorted(same), different, missing) == (files, [], [])
