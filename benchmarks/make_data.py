"""Makes a long-tailed folder of images of true shape, and shards of it, from any folder of real JPEGs.

    python benchmarks/make_data.py --images DIR --out DIR [--counts FILE] [--scale S]

Writes OUT/images/train/<class>/*.jpg, each a file of its own with the bytes of one of the images in turn, and from
them OUT/shards (the original bytes) and OUT/shards_256 (short side 256). By default the classes are as large as those
of Places-LT: 62,500 images of 365 classes, 4980 to 5; --scale 0.25 makes each a quarter as large, but never empty.
"""

import argparse
import json
import subprocess
import sys
from itertools import count
from pathlib import Path

from cbd_fast.cli.command import run_command
from cbd_fast.errors import InputError, RunError
from cbd_fast.files import atomic_folder

HERE = Path(__file__).parent
PLACES_LT = HERE / "places_lt_counts.json"
MAKE_SHARDS = HERE.parent / "tools" / "make_shards.py"


def main() -> None:
    """Writes the folder of images, then both folders of shards; what is there already stays."""
    arguments = parse_arguments()
    folder = arguments.out / "images"
    counts = scaled(read_counts(arguments.counts), arguments.scale)
    if not folder.exists():
        write_images(arguments.images, counts, folder)
    elif [len(list(each.iterdir())) for each in sorted((folder / "train").iterdir())] != counts:
        raise InputError(f"{folder}: holds images of other counts or another scale; choose another --out")
    for name, options in (("shards", []), ("shards_256", ["--short-side", "256"])):
        command = [sys.executable, MAKE_SHARDS, "folder", "--train", folder / "train", "--out", arguments.out / name]
        if subprocess.run([*map(str, command), *options]).returncode:
            raise RunError(f"{arguments.out / name}: could not be made; make_shards.py says why above")


def read_counts(path: Path) -> list[int]:
    """Images per class, from ``{"counts": [...]}``."""
    try:
        counts = json.loads(path.read_text())["counts"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f'{path}: not a file with {{"counts": [...]}} ({error!r})') from error
    if not counts or not all(isinstance(number, int) and number > 0 for number in counts):
        raise InputError(f"{path}: counts must be whole numbers above 0, one per class")
    return counts


def scaled(counts: list[int], scale: float) -> list[int]:
    """Every class smaller or larger by the same factor, but never empty."""
    return [max(1, round(number * scale)) for number in counts]


def write_images(source: Path, counts: list[int], folder: Path) -> None:
    """Writes as many files as the counts say, each with the bytes of the next image of the source."""
    images = sorted(path for path in source.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not images:
        raise InputError(f"--images {source}: holds no .jpg or .jpeg files")
    number = count()
    with atomic_folder(folder) as partial:
        for label, size in enumerate(counts):
            class_folder = partial / "train" / f"class_{label:05d}"
            class_folder.mkdir(parents=True)
            for place in range(size):
                data = images[next(number) % len(images)].read_bytes()
                (class_folder / f"{place:06d}.jpg").write_bytes(data)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="JPEGs, at any depth")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--counts", type=Path, default=PLACES_LT, metavar="FILE", help="default: those of Places-LT")
    parser.add_argument("--scale", type=float, default=1.0, metavar="S", help="of every class (default 1)")
    arguments = parser.parse_args()
    if not 0 < arguments.scale < float("inf"):
        raise InputError(f"--scale {arguments.scale:g}: must be above 0")
    return arguments


if __name__ == "__main__":
    run_command(main)
