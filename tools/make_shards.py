"""Turns a dataset into WebDataset shards with an index by class.

python tools/make_shards.py digits --out shards/digits_lt
python tools/make_shards.py folder --train DIR --test DIR --imbalance 100 --out shards/NAME
"""

import argparse
import math
import os
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from cbd_fast.dashboard import make_console
from cbd_fast.errors import run_command
from cbd_fast.sharding.manifest import frequency_groups
from cbd_fast.sharding.sources import SPLITS, Source, digits_source, folder_source, with_long_tail
from cbd_fast.sharding.writer import SKIPPED_NAME, ShardSize, WrittenDataset, write_dataset

NUM_SKIPPED_SHOWN = 10


def main() -> None:
    """Parses the command line, writes the shards, prints what was written."""
    arguments = parse_arguments()
    console = make_console()
    source = read_source(arguments)
    size = ShardSize(num_bytes=int(arguments.shard_megabytes * 10**6), num_pictures=arguments.shard_pictures)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("pictures", total=sum(len(pictures) for pictures in source.splits.values()))
        written = write_dataset(
            source,
            arguments.out,
            seed=arguments.seed,
            num_workers=arguments.workers,
            size=size,
            on_picture=lambda: progress.advance(task),
        )
    report(written, arguments.out, console)


def parse_arguments() -> argparse.Namespace:
    """The command line; errors in it end the program with exit code 2."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to write")
    common.add_argument("--seed", type=int, default=0, help="chooses and shuffles the pictures (default 0)")
    common.add_argument(
        "--workers",
        type=positive_int,
        default=len(os.sched_getaffinity(0)),
        metavar="N",
        help="default: one per core",
    )
    common.add_argument("--shard-megabytes", type=positive_float, default=100.0, metavar="MB", help="default 100")
    common.add_argument("--shard-pictures", type=positive_int, default=5000, metavar="N", help="default 5000")

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sources = parser.add_subparsers(dest="source", required=True, metavar="SOURCE")
    sources.add_parser("digits", parents=[common], help="scikit-learn's handwritten digits, long-tailed")
    folder = sources.add_parser("folder", parents=[common], help="one folder per class")
    folder.add_argument("--train", type=Path, required=True, metavar="DIR")
    folder.add_argument("--val", type=Path, metavar="DIR")
    folder.add_argument("--test", type=Path, required=True, metavar="DIR")
    folder.add_argument(
        "--imbalance",
        type=imbalance_factor,
        metavar="F",
        help="keep floor(n_max * F ** (-c / (C - 1))) training pictures of class c, in sorted order of classes",
    )
    return parser.parse_args()


def read_source(arguments: argparse.Namespace) -> Source:
    """Lists the pictures of the source that was asked for."""
    if arguments.source == "digits":
        return digits_source(arguments.seed)
    source = folder_source({split: root for split in SPLITS if (root := getattr(arguments, split))})
    return with_long_tail(source, arguments.imbalance, arguments.seed) if arguments.imbalance else source


def report(written: WrittenDataset, out: Path, console: Console) -> None:
    """Prints the closing table and the first of the pictures that were left out."""
    manifest = written.manifest
    groups = frequency_groups(np.array(manifest.splits["train"].class_counts))
    # not markup: names of folders and files may look like it
    table = Table(title=Text(f"{out}" + ("" if written.is_new else " (already there, unchanged)")))
    for column in ("split", "classes", "pictures", *groups, "megabytes", "shards"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for split, record in manifest.splits.items():
        present = np.array(record.class_counts) > 0
        table.add_row(
            split,
            f"{present.sum():,}",
            f"{record.num_pictures:,}",
            *(f"{(mask & present).sum():,}" for mask in groups.values()),
            f"{sum(shard.num_bytes for shard in record.shards) / 1e6:,.1f}",
            f"{len(record.shards):,}",
        )
    console.print(table)
    console.print("many, medium, few: classes of more than 100, 20 to 100, fewer than 20 for training", highlight=False)
    if written.num_converted:
        console.print(
            f"{written.num_converted:,} pictures stored as 8-bit RGB PNG (CMYK, palette, alpha, 16 bits, ...)"
        )
    if written.skipped:
        lines = [f"{len(written.skipped):,} pictures left out, all in {out / SKIPPED_NAME}; the first:"]
        lines += [
            f"  {skip.split}/{printable(skip.name)}: {skip.reason}" for skip in written.skipped[:NUM_SKIPPED_SHOWN]
        ]
        console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def printable(name: str) -> str:
    """A file's name with its control characters and undecodable bytes written out."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in name)


def positive_int(text: str) -> int:
    """A whole number of at least 1."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1")
    return number


def positive_float(text: str) -> float:
    """A number above 0."""
    if not 0 < (number := float(text)) < 1e9:
        raise argparse.ArgumentTypeError(f"{text}: must be above 0 and below a billion")
    return number


def imbalance_factor(text: str) -> float:
    """A number of at least 1."""
    if not 1 <= (number := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1 (largest class over smallest)")
    return number


if __name__ == "__main__":
    run_command(main)
