"""How many images per second does each loader give? All of them in one run, in turn, on the same images.

    python benchmarks/make_data.py --images JPEGS --out DATA
    python benchmarks/loader.py --images DATA/images/train --shards DATA/shards DATA/shards_256

--images is any folder of class folders, --shards any shards of the same images. Every contestant cuts random
resized crops and flips them, in batches of 128, with as many threads or workers as this process has cores, in a process
of its own that sleeps while others have their turn. Those that can draw class-balanced do; the fractions of the largest
and smallest class tell what each really drew.
"""

import argparse
import os
import statistics
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import torch
from contestants import BATCH_SIZE, PREFETCH, Batches, Contestant, all_contestants, class_images
from report import machine_and_versions, print_table, write_json

from cbd_fast.cli.command import run_command
from cbd_fast.cli.shard_options import positive_int
from cbd_fast.errors import InputError, RunError
from cbd_fast.resources import num_cores
from cbd_fast.shards.reader import ShardReader

PACKAGES = ("torch", "torchvision", "numpy", "pillow", "webdataset", "nvidia-dali-cuda120")
WARM_UP_SHARE = 0.4  # of a turn's time


@dataclass
class Runner:
    """A contestant in its own process, and what it has done."""

    contestant: Contestant
    process: Any
    told: Connection
    rates: list[float] = field(default_factory=list)
    cold_rates: list[float] = field(default_factory=list)
    drawn: Counter[int] = field(default_factory=Counter)
    num_bytes: int = 0

    def turn(self, seconds: float) -> float:
        """Lets it run for so long; returns images per second."""
        self.told.send(seconds)
        try:
            rate, drawn = self.told.recv()
        except EOFError:
            raise RunError(f"{self.contestant.name}: its process ended; see above") from None
        self.drawn.update(drawn)
        # now, with its batches ahead: to look while it runs would slow it down
        self.num_bytes = max(self.num_bytes, proportional_bytes(self.process.pid))
        return rate


def main() -> None:
    """Measures, prints a table and writes JSON."""
    arguments = parse_arguments()
    contestants = all_contestants(arguments.images, arguments.shards, arguments.image_size, arguments.cache)
    if arguments.only:
        options = [*arguments.only.split(","), contestants[0].name]
        contestants = [each for each in contestants if any(word in each.name for word in options)]
    runners = [start(contestant) for contestant in contestants]
    for runner in runners:
        runner.turn(arguments.seconds * WARM_UP_SHARE)
    for _ in range(arguments.rounds):
        for runner in runners:
            runner.rates.append(runner.turn(arguments.seconds))
        for runner in runners if arguments.cold else []:
            forget(runner.contestant.path)
            runner.cold_rates.append(runner.turn(arguments.seconds))
    for runner in runners:
        runner.told.send(None)
        runner.process.join()
    report([summarized(runner, runners[0], arguments) for runner in runners], arguments)


def start(contestant: Contestant) -> Runner:
    """Starts a contestant's process."""
    context = get_context("spawn")
    mine, its = context.Pipe()
    process = context.Process(target=serve, args=(contestant, its))
    process.start()
    its.close()
    return Runner(contestant, process, mine)


def serve(contestant: Contestant, told: Connection) -> None:
    """In the contestant's process: runs for as long as it is told to, until there is nothing more to do."""
    batches: Batches | None = None
    with suppress(EOFError):  # whoever measures has ended
        while (seconds := told.recv()) is not None:
            batches = batches or contestant.batches()
            told.send(measure(batches, seconds))


def measure(batches: Batches, seconds: float) -> tuple[float, Counter[int]]:
    """Images per second over at least so many seconds, and how many of each class."""
    drawn: Counter[int] = Counter()
    for _ in range(PREFETCH * num_cores() + 2):  # made while the others had their turn
        next(batches)
    num_images, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds:
        images, labels = next(batches)
        num_images += len(images)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        drawn.update(labels.tolist())
    return num_images / elapsed, drawn


def forget(folder: Path) -> None:
    """Asks the system to drop what it keeps in memory of all files below a folder."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())  # what is not written yet cannot be dropped
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def proportional_bytes(pid: int) -> int:
    """Memory of a process and those that it started; what several share is divided among them."""
    total = 0
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except psutil.NoSuchProcess:
            continue
    return total


def summarized(runner: Runner, baseline: Runner, arguments: argparse.Namespace) -> dict[str, Any]:
    """One row of the table."""
    median = statistics.median(runner.rates)
    num_drawn = sum(runner.drawn.values())
    per_class = [runner.drawn[label] for label in range(len(class_images(arguments.images)))]
    return {
        "contestant": runner.contestant.name,
        "images/s": round(median),
        "spread": f"{min(runner.rates):,.0f} to {max(runner.rates):,.0f}",
        "ratio": f"{median / statistics.median(baseline.rates):.2f}",
        **({"images/s from the disk": round(statistics.median(runner.cold_rates))} if runner.cold_rates else {}),
        "MB on disk": round(disk_bytes(runner.contestant.path) / 1e6),
        "MB of memory": round(runner.num_bytes / 1e6),
        "largest class, %": f"{100 * max(per_class) / num_drawn:.3f}",
        "smallest class, %": f"{100 * min(per_class) / num_drawn:.3f}",
    }


def disk_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def report(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    """Prints the table and writes the JSON."""
    classes = class_images(arguments.images)
    title = (
        f"{sum(map(len, classes)):,} images of {len(classes)} classes to {arguments.image_size} pixels, batches "
        f"of {BATCH_SIZE}; medians of {arguments.rounds} rounds of {arguments.seconds:g} s"
    )
    print_table(rows, title)
    settings = {key: str(value) for key, value in vars(arguments).items()}
    write_json(arguments.out, {"settings": settings, "title": title, **machine_and_versions(PACKAGES), "rows": rows})


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="one folder per class")
    parser.add_argument("--shards", type=Path, nargs="+", required=True, metavar="DIR", help="shards of these images")
    parser.add_argument("--image-size", type=positive_int, default=224, metavar="N")
    parser.add_argument("--cache", type=float, default=0.2, metavar="FRACTION", help="default 0.2; and none")
    parser.add_argument("--rounds", type=positive_int, default=5, metavar="N")
    parser.add_argument("--seconds", type=float, default=5, metavar="S", help="of each contestant in each round")
    parser.add_argument(
        "--cold", action="store_true", help="also give each turns before which its files are dropped from memory"
    )
    parser.add_argument("--only", metavar="WORDS", help="contestants with one of these in their names, and the first")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    arguments = parser.parse_args()
    if not arguments.images.is_dir() or not class_images(arguments.images):
        raise InputError(f"--images {arguments.images}: not a folder of class folders with images")
    if not 0 <= arguments.cache <= 1:
        raise InputError(f"--cache {arguments.cache:g}: must be from 0 to 1, a fraction of the images")
    for folder in arguments.shards:
        ShardReader(folder, "train")  # says what is wrong before anything runs
    return arguments


if __name__ == "__main__":
    run_command(main)
