"""Do memory, threads and open files stay flat over a million images?

    python benchmarks/soak.py --shards DIR [--images 1000000] [--evaluations 50] [--cache 0.2] [--decoder torch]
        [--image-size 32] [--out FILE.json]

Draws class-balanced batches from the loader and looks at its own process now and then. Between the looks other loaders
pass every image once, as evaluations do; every second of them is dropped without being closed. Exits 1 if at the end
memory is more than --max-growth megabytes above its highest in the first quarter, or threads, open files or shared
memory are not what they were when it looked first.
"""

import argparse
import gc
import os
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
SETTLE_SECONDS = 5
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
    options = {"batch_size": BATCH_SIZE, "image_size": arguments.image_size, "decoder": arguments.decoder}
    options |= {"cache": arguments.cache, "augmentation": Augmentation(crop=arguments.crop)}
    num_evaluated = 0
    with Loader(arguments.shards, sampling="class_balanced", **options) as loader:
        num_steps = max(arguments.points, -(-arguments.images // BATCH_SIZE))
        looks = {num_steps * number // arguments.points for number in range(1, arguments.points + 1)}
        began, last = time.perf_counter(), 0
        for number, _ in enumerate(loader.steps(0, num_steps), 1):
            if number not in looks:
                continue
            speed = rate(number - last, time.perf_counter() - began)
            # one more with each look, or so: at the last one there have been as many as were asked for
            while num_evaluated < arguments.evaluations * number // num_steps:
                evaluate(arguments.shards, is_closed=num_evaluated % 2 == 0, **options)
                num_evaluated += 1
            yield {"images": number * BATCH_SIZE, "evaluations": num_evaluated, **settled_state(), "images/s": speed}
            began, last = time.perf_counter(), number


def evaluate(shards: Path, *, is_closed: bool, **options: Any) -> None:
    """A loader that passes every image once, and is closed or only dropped."""
    options["augmentation"] = options["augmentation"].for_test()
    loader = Loader(shards, sampling="sequential", **options)
    for _ in loader:
        pass
    if is_closed:
        loader.close()


def settled_state() -> dict[str, Any]:
    """The state when the threads of dropped loaders have ended, and DALI's objects, which refer to one another."""
    gc.collect()
    now, deadline = state(), time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < deadline:
        time.sleep(0.1)
        before, now = now, state()
        if before["threads"] == now["threads"]:
            break
    return now


def state() -> dict[str, Any]:
    """Memory, threads and open files of this process."""
    process = psutil.Process()
    memory, files = process.memory_info(), list(Path("/proc/self/fd").iterdir())
    blocks = [file.stat() for file in files if file.exists() and "memfd:" in os.readlink(file)]
    return {
        "memory, MB": round(memory.rss / 1e6, 1),
        "of no file, MB": round((memory.rss - memory.shared) / 1e6, 1),
        "shared, MB": round(sum(block.st_blocks for block in blocks) * 512 / 1e6, 1),
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
    for name in ("shared, MB", "threads", "open files"):
        if len(found := {row[name] for row in rows}) > 1:
            raise RunError(f"{name} changed: {sorted(found)}")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, required=True, metavar="DIR")
    parser.add_argument("--images", type=positive_int, default=1_000_000, metavar="N")
    parser.add_argument("--image-size", type=positive_int, default=32, metavar="N")
    parser.add_argument("--evaluations", type=int, default=50, metavar="N", help="how often every image is passed once")
    parser.add_argument("--cache", type=float, default=0.2, metavar="FRACTION", help="of the images; 0 for none")
    parser.add_argument("--crop", default="pad_and_crop", choices=("pad_and_crop", "random_resized_crop"))
    parser.add_argument("--decoder", default="torch", metavar="NAME")
    parser.add_argument("--points", type=positive_int, default=20, metavar="N", help="how often to look")
    parser.add_argument("--max-growth", type=float, default=10, metavar="MB")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
