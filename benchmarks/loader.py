"""How many pictures per second does the loader decode, beside torchvision under a DataLoader, from the same shards?

    python benchmarks/loader.py --shards DIR [--image-size 224] [--rounds 5] [--seconds 10] [--out FILE.json]

Every contestant draws class-balanced, cuts random resized crops and flips them, with as many threads or workers as this
process has cores. Contestants take turns, so that whatever else the machine does meets all of them alike.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import machine_and_versions, print_table, write_json
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler
from torchvision.transforms import v2

from cbd_fast import Loader
from cbd_fast.errors import run_command
from cbd_fast.loading.machine import num_cores
from cbd_fast.sharding.decode import decode_rgb
from cbd_fast.sharding.shard_set import ShardSet

BATCH_SIZE = 128
PREFETCH = 2  # batches that each DataLoader worker prepares ahead of time, as by default
BASELINE = "torchvision decode + v2, DataLoader"
PACKAGES = ("torch", "torchvision", "numpy", "nvidia-dali-cuda120")


class TorchvisionPictures(Dataset[tuple[torch.Tensor, int]]):
    """What a user would write: decode, random resized crop, flip, all on uint8."""

    def __init__(self, shards: Path, image_size: int) -> None:
        self.shards = ShardSet(shards, "train")
        crop = v2.RandomResizedCrop(image_size, scale=(0.05, 1), antialias=True)
        self.transform = v2.Compose([crop, v2.RandomHorizontalFlip()])

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        return self.transform(decode_rgb(self.shards.read(row))), int(self.shards.index.rows["label"][row])


def main() -> None:
    """Measures, prints a table and writes JSON."""
    arguments = parse_arguments()
    contestants = {name: make() for name, make in make_contestants(arguments).items()}
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for batches in contestants.values():
        measure(batches, arguments.seconds / 5)  # warm-up: worker start, page cache
    for _ in range(arguments.rounds):
        for name, batches in contestants.items():
            rates[name].append(measure(batches, arguments.seconds))
    rows = [summarized(name, values, statistics.median(rates[BASELINE])) for name, values in rates.items()]
    report(rows, arguments)


def make_contestants(arguments: argparse.Namespace) -> dict[str, Callable[[], Iterator[Any]]]:
    """Name and endless batches of each contestant."""
    has_gpu = torch.cuda.is_available()
    where = "GPU" if has_gpu else "CPU"
    return {
        BASELINE: lambda: torchvision_batches(arguments.shards, arguments.image_size),
        "cbd_fast, torch threads": lambda: our_batches(arguments.shards, arguments.image_size, "torch"),
        f"cbd_fast, DALI on the {where}": lambda: our_batches(arguments.shards, arguments.image_size, "dali"),
    }


def our_batches(shards: Path, image_size: int, decoder: str) -> Iterator[Any]:
    """Batches of this project's loader, on the GPU where there is one."""
    loader = Loader(shards, sampling="class_balanced", batch_size=BATCH_SIZE, image_size=image_size, decoder=decoder)
    for batch in loader.steps(0, 10**9):
        yield batch.images


def torchvision_batches(shards: Path, image_size: int) -> Iterator[Any]:
    """Batches of a DataLoader, made the same float32 input on the same device."""
    pictures = TorchvisionPictures(shards, image_size)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    weights = 1 / pictures.shards.index.counts[pictures.shards.index.rows["label"]]
    sampler = WeightedRandomSampler(weights.tolist(), num_samples=10**7)
    loader = DataLoader(
        pictures,
        BATCH_SIZE,
        sampler=sampler,
        num_workers=num_cores(),
        pin_memory=device == "cuda",
        prefetch_factor=PREFETCH,
    )
    for images, _ in loader:
        yield images.to(device, non_blocking=True).float() / 255


def measure(batches: Iterator[Any], seconds: float) -> float:
    """Pictures per second over at least so many seconds."""
    for _ in range(PREFETCH * num_cores()):  # made while the others had their turn
        next(batches)
    num_pictures, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds:
        num_pictures += len(next(batches))
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    return num_pictures / elapsed


def summarized(name: str, values: list[float], baseline: float) -> dict[str, Any]:
    """Median and spread of a contestant's rounds."""
    median = statistics.median(values)
    return {
        "contestant": name,
        "pictures/s": round(median),
        "spread": f"{min(values):,.0f} to {max(values):,.0f}",
        "ratio": round(median / baseline, 2),
    }


def report(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    """Prints the table and writes the JSON."""
    shards = ShardSet(arguments.shards, "train")
    kilobytes = round(float(np.median(shards.index.rows["size"])) / 1e3, 1)
    print_table(rows, f"{arguments.shards}: {kilobytes} KB a picture to {arguments.image_size} pixels")
    data = {"pictures": len(shards), "classes": shards.num_classes, "median_kilobytes": kilobytes}
    settings = {key: str(value) for key, value in vars(arguments).items()}
    write_json(arguments.out, {"settings": settings, **machine_and_versions(PACKAGES), "data": data, "rows": rows})


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, required=True, metavar="DIR")
    parser.add_argument("--image-size", type=int, default=224, metavar="N")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--seconds", type=float, default=10, metavar="S", help="of each contestant in each round")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
