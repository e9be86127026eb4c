"""Turns a dataset into WebDataset shards with an index by class.

python tools/make_shards.py digits --out shards/digits_lt
python tools/make_shards.py folder --train DIR --test DIR --imbalance 100 --out shards/NAME
"""

import argparse
import os
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from cbd_fast.errors import run_command
from cbd_fast.sharding.manifest import frequency_groups
from cbd_fast.sharding.sources import SPLITS, Source, digits_source, folder_source, with_long_tail
from cbd_fast.sharding.writer import SKIPPED_NAME, ShardSize, WrittenDataset, write_dataset

NUM_SKIPPED_SHOWN = 10


def main() -> None:
    """Parses the command line, writes the shards, prints what was written."""
    arguments = parse_arguments()
    console = Console()
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
    title = f"{out}: {len(manifest.classes)} classes" + ("" if written.is_new else " (already there, unchanged)")
    table = Table(title=title)
    for column in ("split", "pictures", "largest", "smallest", "megabytes", "shards"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for split, record in manifest.splits.items():
        table.add_row(
            split,
            f"{record.num_pictures:,}",
            f"{max(record.class_counts):,}",
            f"{min(record.class_counts):,}",
            f"{sum(shard.num_bytes for shard in record.shards) / 1e6:,.1f}",
            f"{len(record.shards):,}",
        )
    console.print(table)
    groups = frequency_groups(np.array(manifest.splits["train"].class_counts))
    console.print("classes in training: " + ", ".join(f"{mask.sum():,} {name}" for name, mask in groups.items()))
    if written.num_converted:
        console.print(
            f"{written.num_converted:,} pictures stored as 8-bit RGB PNG (CMYK, palette, alpha, 16 bits, ...)"
        )
    if written.skipped:
        console.print(f"[yellow]{len(written.skipped):,} pictures left out[/], all in {out / SKIPPED_NAME}; the first:")
        for skip in written.skipped[:NUM_SKIPPED_SHOWN]:
            console.print(f"  {skip.split}/{skip.name}: {skip.reason}", markup=False, highlight=False)


def positive_int(text: str) -> int:
    """A whole number of at least 1."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1")
    return number


def positive_float(text: str) -> float:
    """A number above 0."""
    if not (number := float(text)) > 0:
        raise argparse.ArgumentTypeError(f"{text}: must be above 0")
    return number


def imbalance_factor(text: str) -> float:
    """A number of at least 1."""
    if not (number := float(text)) >= 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1 (largest class over smallest)")
    return number


if __name__ == "__main__":
    run_command(main)
