"""The loaders that benchmarks/loader.py compares, each as endless batches: (images, labels).

Each gives what a network takes: float32 images of 0 to 1, flipped random resized crops, on the GPU where there is
one. Each is written as its own documentation does it, class-balanced where it can be.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler
from torchvision.io import ImageReadMode, decode_image, decode_jpeg, read_file
from torchvision.transforms import v2

from cbd_fast import Loader
from cbd_fast.resources import num_cores
from cbd_fast.shards.reader import ShardReader

BATCH_SIZE = 128
MIN_AREA = 0.05
PREFETCH = 2  # batches that each DataLoader worker prepares ahead of time, as by default
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ENDLESS = 10**8  # steps, more than any benchmark makes
EPOCH = 10**6  # draws; PyTorch makes a list of them, of 48 MB
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")

Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """A loader with its settings; travels to a process of its own.

    Attributes:
        name: for the table.
        kind: one of ``KINDS``.
        path: a folder of class folders, or of shards.
        image_size: of the crops.
        options: for ours, of ``Loader``.
    """

    name: str
    kind: str
    path: Path
    image_size: int
    options: dict[str, Any]

    def batches(self) -> Batches:
        """Endless batches."""
        return KINDS[self.kind](self)


class FolderImages(Dataset[tuple[torch.Tensor, int]]):
    """One folder per class, decoded by Pillow or by torchvision."""

    def __init__(self, folder: Path, image_size: int, use_pillow: bool) -> None:
        self.items = [(str(path), label) for label, paths in enumerate(class_images(folder)) for path in paths]
        self.use_pillow, self.transform = use_pillow, crop_and_flip(image_size)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        path, label = self.items[number]
        if self.use_pillow:
            image = self.transform(Image.open(path).convert("RGB"))
            return v2.functional.pil_to_tensor(image), label
        data = read_file(path)
        decode = decode_jpeg if path.lower().endswith((".jpg", ".jpeg")) else decode_image
        return self.transform(decode(data, mode=ImageReadMode.RGB)), label


def class_images(folder: Path) -> list[list[Path]]:
    """The images of each class: of each folder in it that has any, as make_shards takes them."""
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    found = [sorted(path for path in each.iterdir() if path.suffix.lower() in SUFFIXES) for each in folders]
    return [paths for paths in found if paths]


def crop_and_flip(image_size: int) -> v2.Compose:
    """What all contestants do, as torchvision has it."""
    crop = v2.RandomResizedCrop(image_size, scale=(MIN_AREA, 1), antialias=True)
    return v2.Compose([crop, v2.RandomHorizontalFlip()])


def torchvision_batches(contestant: Contestant, use_pillow: bool) -> Batches:
    """DataLoader with WeightedRandomSampler over files."""
    images = FolderImages(contestant.path, contestant.image_size, use_pillow)
    labels = np.array([label for _, label in images.items])
    weights = 1 / np.bincount(labels)[labels]
    loader = DataLoader(
        images,
        BATCH_SIZE,
        sampler=WeightedRandomSampler(weights.tolist(), num_samples=EPOCH),
        num_workers=num_cores(),
        pin_memory=DEVICE == "cuda",
        prefetch_factor=PREFETCH,
        multiprocessing_context="fork",
        persistent_workers=True,
    )
    while True:
        yield from as_input(loader)


def webdataset_batches(contestant: Contestant) -> Batches:
    """Stock webdataset: shuffled shards through a buffer; it cannot draw class-balanced."""
    transform = crop_and_flip(contestant.image_size)

    def decoded(data: bytes) -> torch.Tensor:
        encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return transform(decode_image(encoded, mode=ImageReadMode.RGB))

    dataset = (
        webdataset.WebDataset(tars(contestant.path), resampled=True, shardshuffle=False)
        .shuffle(1000)
        .to_tuple("jpg;png;webp", "cls")
        .map_tuple(decoded, int)
        .batched(BATCH_SIZE)
    )
    workers = {"num_workers": num_cores(), "prefetch_factor": PREFETCH, "multiprocessing_context": "fork"}
    return as_input(webdataset.WebLoader(dataset, batch_size=None, **workers))


def dali_reader_batches(contestant: Contestant) -> Batches:
    """DALI's own reader of WebDataset shards; it cannot draw class-balanced."""
    from nvidia.dali import fn, types
    from nvidia.dali.pipeline import Pipeline

    is_on_gpu, size = DEVICE == "cuda", contestant.image_size
    pipeline: Any = Pipeline(batch_size=BATCH_SIZE, num_threads=num_cores(), device_id=0 if is_on_gpu else None, seed=0)
    with pipeline:
        components: Any = fn.readers.webdataset(
            paths=tars(contestant.path), ext=["jpg;png;webp", "cls"], random_shuffle=True, initial_fill=1000
        )
        encoded, labels = components
        images = fn.decoders.image_random_crop(
            encoded,
            device="mixed" if is_on_gpu else "cpu",
            output_type=types.RGB,
            random_area=[MIN_AREA, 1.0],
            random_aspect_ratio=[3 / 4, 4 / 3],
        )
        images = fn.resize(images, size=[size, size], interp_type=types.INTERP_LINEAR, antialias=True)
        images = fn.crop_mirror_normalize(
            images, std=[255.0], mirror=fn.random.coin_flip(), dtype=types.FLOAT, output_layout="HWC"
        )
        pipeline.set_outputs(images, labels)
    pipeline.build()
    while True:
        images, numbers = pipeline.run()
        found = [int(bytes(np.asarray(numbers[place]))) for place in range(BATCH_SIZE)]
        # DALI uses its memory again for the next batch
        yield torch.from_dlpack(images.as_tensor()).clone().permute(0, 3, 1, 2), torch.tensor(found)


def our_batches(contestant: Contestant) -> Batches:
    """This project's loader."""
    loader = Loader(
        contestant.path,
        sampling="class_balanced",
        batch_size=BATCH_SIZE,
        image_size=contestant.image_size,
        **contestant.options,
    )
    for batch in loader.steps(0, ENDLESS):
        yield batch.images, batch.labels


def ffcv_batches(contestant: Contestant) -> Batches:
    """FFCV, from a file that its converter writes first; it has no class-balanced order."""
    from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader as FfcvLoader
    from ffcv.loader import OrderOption
    from ffcv.transforms import RandomHorizontalFlip, Squeeze, ToTensor, ToTorchImage

    decoder = RandomResizedCropRGBImageDecoder((contestant.image_size, contestant.image_size), scale=(MIN_AREA, 1))
    loader = FfcvLoader(
        str(ffcv_file(contestant)),
        batch_size=BATCH_SIZE,
        num_workers=num_cores(),
        order=OrderOption.RANDOM,
        drop_last=True,
        pipelines={
            "image": [decoder, RandomHorizontalFlip(), ToTensor(), ToTorchImage()],
            "label": [IntDecoder(), ToTensor(), Squeeze()],
        },
    )
    while True:
        yield from as_input(loader)


def ffcv_file(contestant: Contestant) -> Path:
    """Writes the folder as FFCV has it: JPEGs of quality 90 as large as they are, or raw pixels of 256 at most."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter
    from torchvision.datasets import ImageFolder

    mode = contestant.options["write_mode"]
    path = Path(tempfile.gettempdir()) / f"cbd_fast-{os.getpid()}-{mode}.beton"
    field = RGBImageField(write_mode=mode, max_resolution=256 if mode == "raw" else None, jpeg_quality=90)
    DatasetWriter(str(path), {"image": field, "label": IntField()}).from_indexed_dataset(ImageFolder(contestant.path))
    return path


def as_input(loader: Any) -> Batches:
    """uint8 batches as a network takes them."""
    for images, labels in loader:
        yield images.to(DEVICE, non_blocking=True).float().div_(255), torch.as_tensor(labels)


def tars(folder: Path) -> list[str]:
    """Shards of the training split."""
    return [str(path) for path in ShardReader(folder, "train").paths]


KINDS: dict[str, Callable[[Contestant], Batches]] = {
    "pillow": partial(torchvision_batches, use_pillow=True),
    "decode_jpeg": partial(torchvision_batches, use_pillow=False),
    "webdataset": webdataset_batches,
    "dali_reader": dali_reader_batches,
    "ours": our_batches,
    "ffcv": ffcv_batches,
}


def all_contestants(images: Path, shards: list[Path], image_size: int, cache: float) -> list[Contestant]:
    """Everybody who can run here; ``decode_jpeg``, which others are compared with, first."""

    def made(name: str, kind: str, path: Path, **options: Any) -> Contestant:
        return Contestant(name=name, kind=kind, path=path, image_size=image_size, options=options)

    found = [made("torchvision decode_jpeg", "decode_jpeg", images), made("torchvision Pillow", "pillow", images)]
    with suppress(ImportError):
        import_module("ffcv")
        for name, mode in (("FFCV JPEG", "jpg"), ("FFCV raw, longest side 256", "raw")):
            found.append(made(name, "ffcv", images, write_mode=mode))
    has_dali = find_spec("nvidia") is not None and find_spec("nvidia.dali") is not None
    decoders = {"torch": {"decoder": "torch", "device": DEVICE}}
    if has_dali:
        decoders["DALI CPU"] = {"decoder": "dali", "device": "cpu"}
    if has_dali and DEVICE == "cuda":
        decoders["DALI GPU"] = {"decoder": "dali", "device": "cuda"}
    for folder in shards:
        found.append(made(f"webdataset, {folder.name}", "webdataset", folder))
        if has_dali:
            found.append(made(f"DALI reader, {folder.name}", "dali_reader", folder))
        for fraction in sorted({0.0, cache}):
            kept = f", {fraction:.0%} cached" if fraction else ""
            for decoder, options in decoders.items():
                name = f"cbd_fast {decoder}, {folder.name}{kept}"
                found.append(made(name, "ours", folder, cache=fraction, **options))
    return found
