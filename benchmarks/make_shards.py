"""How fast are shards made, beside what a user would do without this project? And does memory grow?

    python benchmarks/make_shards.py --images DIR [--num-images 20000] [--rounds 3] [--work DIR] [--out FILE.json]
    python benchmarks/make_shards.py --memory [--work DIR] [--out FILE.json]

The first repeats the JPEGs of a folder to a number of files and measures whole commands, from their start until what
they wrote has reached the disk: original bytes with full verification beside a single-threaded loop of torchvision's
decode_jpeg over the same bytes; with --verify header beside tar; re-encoding to short side 256 beside Pillow and
webdataset.ShardWriter. Contestants take turns. The second makes shards of 50,000 and of 500,000 tiny images.
"""

import argparse
import io
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import webdataset
from PIL import Image
from report import machine_and_versions, print_table, write_json
from torchvision.io import ImageReadMode, decode_jpeg

from cbd_fast.cli.command import run_command
from cbd_fast.cli.shard_options import positive_int
from cbd_fast.errors import InputError
from cbd_fast.shards.png import encode_png

REPOSITORY = Path(__file__).parent.parent
NUM_CLASSES = 100
SHORT_SIDE, QUALITY = 256, 90
MEMORY_COUNTS = (50_000, 500_000)
PACKAGES = ("torch", "torchvision", "numpy", "pillow", "simplejpeg", "webdataset")


def main() -> None:
    """Measures, prints a table and writes JSON."""
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        rows = memory_rows(Path(folder)) if arguments.memory else speed_rows(Path(folder), arguments)
    print_table(rows)
    settings = {key: str(value) for key, value in vars(arguments).items()}
    write_json(arguments.out, {"settings": settings, **machine_and_versions(PACKAGES), "rows": rows})


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, metavar="DIR", help="JPEGs, at any depth")
    parser.add_argument("--num-images", type=positive_int, default=20_000, metavar="N")
    parser.add_argument("--rounds", type=positive_int, default=3, metavar="N")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where everything is written (default: as of TMPDIR)")
    parser.add_argument(
        "--only", metavar="WORDS", help="contestants with one of these in their names, such as tar,header"
    )
    parser.add_argument("--memory", action="store_true", help="measure memory instead of speed")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    arguments = parser.parse_args()
    if not arguments.memory and not arguments.images:
        parser.error("--images is needed to measure speed")
    return arguments


def speed_rows(work: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per contestant: images per second, spread, and ratio to what it is measured against."""
    images = repeat_images(arguments.images, work / "images", arguments.num_images)
    ours = {
        "cbd_fast, original bytes, --verify full": [],
        "cbd_fast, original bytes, --verify header": ["--verify", "header"],
        f"cbd_fast, short side {SHORT_SIDE}": ["--short-side", str(SHORT_SIDE), "--quality", str(QUALITY)],
    }
    contestants: dict[str, Callable[[Path], None]] = {
        "torchvision decode_jpeg, one thread": lambda out: decode_all(images),
        "tar cf": lambda out: run(["tar", "cf", str(out), "-C", str(work), "images"]),
        f"Pillow + ShardWriter, short side {SHORT_SIDE}": lambda out: straightforward(images, out),
    }
    for name, options in ours.items():
        contestants[name] = partial(make_shards, work / "images", options)
    against = dict(zip(ours, contestants, strict=False))
    if arguments.only:
        words = arguments.only.split(",")
        contestants = {name: made for name, made in contestants.items() if any(word in name for word in words)}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(arguments.rounds + 1):
        for name, contestant in contestants.items():
            os.sync()  # nobody waits for what another has written
            began = time.perf_counter()
            contestant(work / "out")
            os.sync()  # as our command, others end when what they wrote has reached the disk
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - began)
            shutil.rmtree(work / "out") if (work / "out").is_dir() else (work / "out").unlink(missing_ok=True)
    rates = {name: [len(images) / each for each in values] for name, values in seconds.items()}
    return [
        {
            "contestant": name,
            "images/s": round(statistics.median(values)),
            "spread": f"{min(values):,.0f} to {max(values):,.0f}",
            "measured against": against.get(name, ""),
            "ratio": ratio(values, rates.get(against.get(name, name))),
        }
        for name, values in rates.items()
    ]


def ratio(values: list[float], others: list[float] | None) -> float | None:
    """Ratio of the medians."""
    return round(statistics.median(values) / statistics.median(others), 2) if others else None


def repeat_images(folder: Path, out: Path, num_images: int) -> list[Path]:
    """Copies JPEGs until there are enough, in class folders."""
    sources = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not sources:
        raise InputError(f"{folder}: holds no .jpg or .jpeg files")
    images = []
    for number in range(num_images):
        path = out / f"class-{number % NUM_CLASSES:03d}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        images.append(Path(shutil.copyfile(sources[number % len(sources)], path)))
    return images


def decode_all(images: list[Path]) -> None:
    """What one core can do at most."""
    torch.set_num_threads(1)
    for path in images:
        data = torch.from_numpy(np.fromfile(path, np.uint8))
        decode_jpeg(data, mode=ImageReadMode.RGB)


def straightforward(images: list[Path], out: Path) -> None:
    """What a user would write."""
    out.mkdir()
    with webdataset.ShardWriter(f"{out}/train-%06d.tar", maxsize=10**8, maxcount=5000, verbose=0) as writer:
        for number, path in enumerate(images):
            image = Image.open(path).convert("RGB")
            scale = SHORT_SIDE / min(image.size)
            if scale < 1:
                image = image.resize((round(image.width * scale), round(image.height * scale)))
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=QUALITY)
            writer.write({"__key__": f"{number:09d}", "jpg": buffer.getvalue(), "cls": number % NUM_CLASSES})


def make_shards(images: Path, options: list[str], out: Path) -> None:
    """The command that users type."""
    tool = str(REPOSITORY / "tools" / "make_shards.py")
    run([sys.executable, tool, "folder", "--train", str(images), "--out", str(out), *options])


def run(command: list[str]) -> None:
    """Runs a command to its end."""
    subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)


def memory_rows(work: Path) -> list[dict[str, Any]]:
    """Peak memory of the command and its workers for each number of images."""
    rows = []
    for count in MEMORY_COUNTS:
        images, out = work / "images", work / "out"
        for number in range(count):
            path = images / f"class-{number % NUM_CLASSES:03d}" / f"{number:06d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_png(np.full((4, 4, 3), number % 256, np.uint8)))
        tool = str(REPOSITORY / "tools" / "make_shards.py")
        command = [sys.executable, tool, "folder", "--train", str(images), "--out", str(out)]
        began = time.perf_counter()
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
        peaks = {"command": 0, "worker": 0}
        while process.poll() is None:
            for kind, memory in private_memory(process.pid):
                peaks[kind] = max(peaks[kind], memory)
            time.sleep(0.02)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
        rows.append(
            {
                "images": f"{count:,}",
                "command, MB": round(peaks["command"] / 1e6, 1),
                "largest worker, MB": round(peaks["worker"] / 1e6, 1),
                "index, MB": round((out / "train.index.npy").stat().st_size / 1e6, 1),
                "images/s": round(count / (time.perf_counter() - began)),
            }
        )
        shutil.rmtree(images)
        shutil.rmtree(out)
    return rows


def private_memory(pid: int) -> list[tuple[str, int]]:
    """Bytes of the command and of each of its workers that no file holds; mapped files are the page cache's."""
    try:
        command = psutil.Process(pid)
        found = [("command", command), *(("worker", child) for child in command.children(recursive=True))]
        memories = [(kind, process.memory_info()) for kind, process in found]
    except psutil.NoSuchProcess:  # it just ended
        return []
    return [(kind, memory.rss - memory.shared) for kind, memory in memories]


if __name__ == "__main__":
    run_command(main)
