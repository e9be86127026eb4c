"""What do opening, an epoch's order and the first batch cost in time and memory, for up to 14 million images?

    python benchmarks/sampling.py [--images 10000 ... 14000000] [--rounds 3] [--work DIR] [--out FILE.json]

Makes folders of shards with a synthetic long-tailed index whose entries all point to a few real JPEGs, and opens each
with the loader, once per sampling policy, each time in a process of its own. Its memory is what the system counts as
resident: PyTorch, DALI and mapped files too.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from report import machine_and_versions, print_table, write_json
from synthetic import SIDE, make_synthetic_shards

from cbd_fast import Loader
from cbd_fast.cli.command import run_command
from cbd_fast.cli.shard_options import positive_int
from cbd_fast.loading.sampling.parallel_map import map_range
from cbd_fast.loading.sampling.policies import make_order
from cbd_fast.registry import SAMPLING

NUM_IMAGES = (10_000, 100_000, 1_000_000, 10_000_000, 14_000_000)
NUM_CLASSES = 21_841
MIN_MEAN = 100  # images a class; fewer images have fewer classes, as they would
NUM_EPOCHS = 90
MIN_DRAWS = 1_000_000  # of which orders are timed, so that short ones are timed well
PACKAGES = ("torch", "torchvision", "numpy", "nvidia-dali-cuda120")


def main() -> None:
    """Measures, prints a table and writes JSON."""
    arguments = parse_arguments()
    if arguments.measure:
        (policy,) = arguments.policies
        print(json.dumps(measured(arguments.measure, policy, arguments.batch_size, arguments.rounds)))
        return
    rows = []
    with tempfile.TemporaryDirectory(dir=arguments.work) as work:
        for num_images in arguments.images:
            num_classes = min(arguments.classes, max(1, num_images // MIN_MEAN))
            folder = make_synthetic_shards(Path(work) / str(num_images), num_images, num_classes)
            for policy in arguments.policies:
                result = measured_alone(folder, policy, arguments)
                rows.append({"images": f"{num_images:,}", "classes": num_classes, "sampling": policy, **result})
                print(rows[-1], file=sys.stderr)
    print_table(rows)
    settings = {key: str(value) for key, value in vars(arguments).items()}
    write_json(arguments.out, {"settings": settings, **machine_and_versions(PACKAGES), "rows": rows})


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=positive_int, nargs="+", default=NUM_IMAGES, metavar="N")
    parser.add_argument("--classes", type=positive_int, default=NUM_CLASSES, metavar="N", help="at most")
    parser.add_argument("--policies", nargs="+", default=tuple(SAMPLING), choices=tuple(SAMPLING))
    parser.add_argument("--batch-size", type=positive_int, default=128, metavar="N")
    parser.add_argument("--rounds", type=positive_int, default=3, metavar="N")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where the index is written (default: as of TMPDIR)")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)  # in a process of its own
    return parser.parse_args()


def measured_alone(folder: Path, policy: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """``measured`` in a new process."""
    command = [sys.executable, __file__, "--measure", str(folder), "--policies", policy]
    command += ["--batch-size", str(arguments.batch_size), "--rounds", str(arguments.rounds)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def measured(folder: Path, policy: str, batch_size: int, rounds: int) -> dict[str, Any]:
    """Seconds (medians; of the batches the slowest) and megabytes of one policy."""
    with suppress(ModuleNotFoundError):
        import_module("nvidia.dali.fn")  # as PyTorch, before the clock starts
    packages_bytes = psutil.Process().memory_info().rss
    opening, _, loader = timed(lambda: open_loader(folder, policy, batch_size), rounds)
    batches = [timed(partial(loader.batch, step), 1)[0] for step in far_steps(loader, rounds)]
    index_bytes, starts, num_draws = mapped(loader), loader.shards.index.starts, len(loader) * batch_size
    loader.close()
    del loader  # with what its order has planned
    num_epochs = max(1, MIN_DRAWS // num_draws)
    order, in_processor, _ = timed(lambda: indices_of_epochs(policy, starts, num_draws, num_epochs), rounds)
    return {
        "opening, s": round(opening, 3),
        "first batch, s": round(max(batches), 3),
        "epoch's order, s": round(order / num_epochs, 4),
        "of all cores, s": round(in_processor / num_epochs, 4),
        "ns per image": round(order / num_epochs / num_draws * 1e9),
        "packages, MB": round(packages_bytes / 1e6),
        "index, MB": round(index_bytes / 1e6),
        "peak, MB": round(peak_bytes() / 1e6),
    }


def timed(make: Callable[[], Any], rounds: int) -> tuple[float, float, Any]:
    """Medians of seconds and of seconds of all cores together, and what the last round made."""
    seconds, of_cores = [], []
    for _ in range(rounds):
        made, began, worked = None, time.perf_counter(), time.process_time()
        made = make()
        seconds.append(time.perf_counter() - began)
        of_cores.append(time.process_time() - worked)
    return statistics.median(seconds), statistics.median(of_cores), made


def open_loader(folder: Path, policy: str, batch_size: int) -> Loader:
    """A loader as users open it."""
    num_images = np.load(folder / "train.index.npy", mmap_mode="r").size
    total_steps = num_images // batch_size * NUM_EPOCHS
    return Loader(folder, sampling=policy, batch_size=batch_size, image_size=SIDE, total_steps=total_steps)


def far_steps(loader: Loader, rounds: int) -> list[int]:
    """Steps of epochs that are far from each other: the first and the last one of a period, and one between."""
    num_images = len(loader.shards)
    epochs = np.linspace(1, NUM_EPOCHS, rounds).astype(int).tolist()
    draws = [epoch * num_images + part for epoch in epochs for part in (0, num_images // 2)]
    return [draw // loader.batch_size for draw in draws]


def indices_of_epochs(policy: str, starts: np.ndarray, num_draws: int, num_epochs: int) -> np.ndarray:
    """Indices of all draws of some epochs in the middle of a run, by an order that has planned nothing yet."""
    order = make_order(policy, starts, 0, NUM_EPOCHS * num_draws)
    start = NUM_EPOCHS // 2 * num_draws
    return map_range(order, start, start + num_epochs * num_draws, np.uint32)


def mapped(loader: Loader) -> int:
    """Bytes of the index that count as this process's memory."""
    path = str((loader.shards.folder / loader.shards.record.index).resolve())
    return sum(each.rss for each in psutil.Process().memory_maps() if each.path == path)


def peak_bytes() -> int:
    """Most memory that this process has had so far."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


if __name__ == "__main__":
    run_command(main)
