"""Do memory, threads and open files stay flat over a million images?

    python benchmarks/soak.py --shards DIR [--images 1000000] [--image-size 32] [--decoder torch] [--out FILE.json]

Draws class-balanced batches from the loader and looks at its own process now and then. Exits 1 if at the end memory is
more than --max-growth megabytes above its highest in the first quarter, or threads or open files are not as many as
when it looked first.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from report import machine_and_versions, print_table, write_json

from cbd_fast import Augmentation, Loader
from cbd_fast.cli.command import run_command
from cbd_fast.cli.shard_options import positive_int
from cbd_fast.errors import RunError

BATCH_SIZE = 128
PACKAGES = ("torch", "torchvision", "numpy", "nvidia-dali-cuda120")


def main() -> None:
    """Measures, prints a table, writes JSON and judges."""
    arguments = parse_arguments()
    rows = list(look_now_and_then(arguments))
    print_table(rows, f"{arguments.shards}, decoder {arguments.decoder}")
    settings = {key: str(value) for key, value in vars(arguments).items()}
    write_json(arguments.out, {"settings": settings, **machine_and_versions(PACKAGES), "rows": rows})
    judge(rows, arguments.max_growth)


def look_now_and_then(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Passes images through the loader, and yields what its process has at as many times as were asked for."""
    augmentation = Augmentation(crop=arguments.crop)
    options = {"sampling": "class_balanced", "batch_size": BATCH_SIZE, "image_size": arguments.image_size}
    with Loader(arguments.shards, decoder=arguments.decoder, augmentation=augmentation, **options) as loader:
        num_steps = max(arguments.points, -(-arguments.images // BATCH_SIZE))
        looks = {num_steps * number // arguments.points for number in range(1, arguments.points + 1)}
        began, last = time.perf_counter(), 0
        for number, _ in enumerate(loader.steps(0, num_steps), 1):
            if number in looks:
                now = time.perf_counter()
                yield {"images": number * BATCH_SIZE, **state(), "images/s": rate(number - last, now - began)}
                began, last = now, number


def state() -> dict[str, Any]:
    """DecodedCache memory, threads and open files of this process."""
    process = psutil.Process()
    memory = process.memory_info()
    return {
        "memory, MB": round(memory.rss / 1e6, 1),
        "of no file, MB": round((memory.rss - memory.shared) / 1e6, 1),
        "threads": process.num_threads(),
        "open files": process.num_fds(),
    }


def rate(num_steps: int, seconds: float) -> int:
    """Images per second."""
    return round(num_steps * BATCH_SIZE / seconds)


def judge(rows: list[dict[str, Any]], max_growth: float) -> None:
    """Raises what is not flat."""
    first_quarter = rows[: max(1, len(rows) // 4)]
    growth = rows[-1]["memory, MB"] - max(row["memory, MB"] for row in first_quarter)
    print(f"memory at the end is {growth:+.1f} MB of its highest in the first quarter")
    if growth > max_growth:
        raise RunError(f"memory grew by {growth:.1f} MB, more than {max_growth:g}")
    for name in ("threads", "open files"):
        if len(found := {row[name] for row in rows}) > 1:
            raise RunError(f"the number of {name} changed: {sorted(found)}")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, required=True, metavar="DIR")
    parser.add_argument("--images", type=positive_int, default=1_000_000, metavar="N")
    parser.add_argument("--image-size", type=positive_int, default=32, metavar="N")
    parser.add_argument("--crop", default="pad_and_crop", choices=("pad_and_crop", "random_resized_crop"))
    parser.add_argument("--decoder", default="torch", metavar="NAME")
    parser.add_argument("--points", type=positive_int, default=20, metavar="N", help="how often to look")
    parser.add_argument("--max-growth", type=float, default=10, metavar="MB")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
