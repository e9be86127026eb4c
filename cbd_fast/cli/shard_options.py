"""What the commands that write shards have in common: options, a progress bar and the closing table."""

import argparse
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from cbd_fast.errors import printable
from cbd_fast.files import user_path
from cbd_fast.registry import SOURCES
from cbd_fast.resources import num_cores_of_all
from cbd_fast.shards.long_tail import KINDS, LongTail, frequency_groups
from cbd_fast.shards.writing.deep_pixels import FULL, RANGE, format_range, parse_range
from cbd_fast.shards.writing.finalize import SKIPPED_NAME, WrittenDataset
from cbd_fast.shards.writing.options import ShardSize, WriteListener, WriteOptions
from cbd_fast.shards.writing.presets import PRESETS, find_preset
from cbd_fast.shards.writing.validate_image import DEFAULT_MAX_PIXELS, DEFAULT_QUALITY, VERIFICATIONS, ImageRules
from cbd_fast.ui.console import Rate, make_bars

NUM_SKIPPED_SHOWN = 10
DEFAULT_MAX_BAD_FRACTION = 0.01


def add_source_options(parser: argparse.ArgumentParser, source: str, is_out_required: bool = True) -> None:
    """All options for making shards of a source.

    Args:
        parser: the parser that gets them.
        source: the source's name in ``SOURCES``.
        is_out_required: whether the command needs ``--out``.
    """
    if not getattr(SOURCES[source], "is_fixed", False):
        _add_choosing_options(parser, source)
    _add_writing_options(parser, is_out_required)
    _add_checking_options(parser)
    SOURCES[source].add_arguments(parser)


def _add_checking_options(parser: argparse.ArgumentParser) -> None:
    """Options that say how images are checked, and by how many workers."""
    group = parser.add_argument_group("checking")
    group.add_argument(
        "--workers", type=positive_int, default=num_cores_of_all(), metavar="N", help="default: one per core"
    )
    group.add_argument(
        "--verify",
        choices=VERIFICATIONS,
        default="full",
        help="full decodes every image; header decodes JPEGs only if they do not end as they should (default full)",
    )
    group.add_argument(
        "--max-pixels",
        type=positive_int,
        default=DEFAULT_MAX_PIXELS,
        metavar="N",
        help=f"leave out images of more pixels without decoding them (default {DEFAULT_MAX_PIXELS:,})",
    )
    group.add_argument(
        "--max-bad",
        type=_fraction,
        metavar="FRACTION",
        help=f"of the images; if more cannot be used, stop (default {DEFAULT_MAX_BAD_FRACTION}; none with --preset)",
    )
    group.add_argument("--strict", action="store_true", help="stop at the first image that cannot be used")


def _add_writing_options(parser: argparse.ArgumentParser, is_out_required: bool) -> None:
    """Options that say where shards go, their size, and how images are stored."""
    group = parser.add_argument_group("shards")
    group.add_argument("--out", type=user_path, required=is_out_required, metavar="DIR", help="the folder to write")
    group.add_argument("--seed", type=int, default=0, help="chooses and shuffles the images (default 0)")
    group.add_argument("--shard-megabytes", type=_positive_float, default=100.0, metavar="MB", help="default 100")
    group.add_argument("--shard-images", type=positive_int, default=5000, metavar="N", help="default 5000")
    group = parser.add_argument_group("other images (by default the original bytes go in)")
    group.add_argument("--short-side", type=positive_int, metavar="N", help="shrink to this many pixels")
    group.add_argument("--max-side", type=positive_int, metavar="N", help="shrink to at most this many pixels")
    group.add_argument(
        "--quality",
        type=_quality,
        metavar="Q",
        help="store what is shrunk, turned or lossless as JPEG of this quality, 4:2:0 (default: what is shrunk or "
        f"turned and was lossy, with {DEFAULT_QUALITY}; the rest as PNG)",
    )
    group.add_argument(
        "--orient",
        action="store_true",
        default=None,
        help="turn images as their orientation tags say, which training ignores (by default they stay as they are)",
    )
    group.add_argument(
        "--sixteen-bit",
        type=_sixteen_bit,
        metavar="full|range|LO,HI",
        help="values of images of more than 8 bits that become 0 and 255: full, 0 and 65535; range, the lowest and "
        "highest of all these images; or two numbers (default: what the files say, or else range)",
    )


def _add_choosing_options(parser: argparse.ArgumentParser, source: str) -> None:
    """Options that say which images of a source are taken."""
    group = parser.add_argument_group("which images")
    group.add_argument(
        "--imbalance",
        type=_imbalance,
        metavar="F",
        help="make a long tail: keep floor(n_max * F ** (-c / (C - 1))) training images of class c",
    )
    group.add_argument(
        "--imbalance-kind",
        choices=KINDS,
        help="exp (default): as above; step: F times fewer in half of the classes",
    )
    group.add_argument(
        "--val-per-class",
        type=positive_int,
        metavar="N",
        help="make a validation split of images that the long tail leaves out",
    )
    if names := [name for name, preset in PRESETS.items() if source in preset.sources]:
        group.add_argument(
            "--preset", choices=names, metavar="NAME", help=f"check what is published: {', '.join(names)}"
        )


def write_options_from(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> WriteOptions:
    """What the options ask for; options that contradict each other end the program with exit code 2.

    Args:
        arguments: options of ``add_source_options``, and the name of the source as ``source``.
        parser: the parser that they come from.

    Raises:
        InputError: the preset does not go with the source or the long tail.
    """
    imbalance, preset = getattr(arguments, "imbalance", None), getattr(arguments, "preset", None)
    kind = getattr(arguments, "imbalance_kind", None)
    if kind and not imbalance:
        parser.error("--imbalance-kind says how a long tail falls: it needs --imbalance")
    tail = LongTail(imbalance=imbalance, kind=kind or "exp") if imbalance else None
    if preset:
        _, tail = find_preset(preset, arguments.source, tail)
    if num_val := getattr(arguments, "val_per_class", None) or 0:
        if tail is None:
            parser.error("--val-per-class takes images that a long tail leaves out: it needs --imbalance")
        tail = LongTail(imbalance=tail.imbalance, kind=tail.kind, num_val_per_class=num_val)
    max_bad = DEFAULT_MAX_BAD_FRACTION if arguments.max_bad is None else arguments.max_bad
    return WriteOptions(
        seed=arguments.seed,
        size=ShardSize(num_bytes=int(arguments.shard_megabytes * 10**6), num_images=arguments.shard_images),
        rules=ImageRules(
            verify=arguments.verify,
            max_pixels=arguments.max_pixels,
            short_side=arguments.short_side,
            max_side=arguments.max_side,
            quality=arguments.quality,
            orient=bool(arguments.orient),
            sixteen_bit=arguments.sixteen_bit,
        ),
        tail=tail,
        preset=preset,
        max_bad_fraction=0.0 if arguments.strict else max_bad,
        is_whole=bool(preset) and arguments.max_bad is None,
    )


class BarListener(WriteListener):
    """A progress bar with the rate on a terminal; elsewhere only notes."""

    def __init__(self, bars: Bars) -> None:
        self._bars, self._task = bars, bars.add_task("images", total=None, rate="")
        self._rate: Rate | None = None

    def note(self, message: str) -> None:
        self._bars.console.print(printable(message), highlight=False, markup=False)

    def start(self, num_images: int) -> None:
        self._bars.update(self._task, total=num_images)
        self._rate = None

    def update(self, num_images: int) -> None:
        if self._rate is None:
            self._rate = Rate(num_images)
            if num_images:
                self.note(f"going on after {num_images:,} images that are done already")
        self._bars.update(self._task, completed=num_images, rate=self._rate.describe(num_images))


@contextmanager
def bar_on(console: Console) -> Iterator[BarListener]:
    """A progress bar while the block runs."""
    with make_bars(console) as bars:
        yield BarListener(bars)


def report(written: WrittenDataset, out: Path, console: Console) -> None:
    """Prints the closing table and the first of the images that were left out.

    Args:
        written: what became of the dataset.
        out: the folder of the shards.
        console: where it is printed.
    """
    manifest = written.manifest
    groups = frequency_groups(np.array(manifest.splits["train"].class_counts))
    # not markup: names of folders and files may look like it
    table = Table(title=Text(printable(out) + ("" if written.is_new else " (already there, unchanged)")))
    for column in ("split", "classes", "images", *groups, "megabytes", "shards"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for split, record in manifest.splits.items():
        present = np.array(record.class_counts) > 0
        table.add_row(
            split,
            f"{present.sum():,}",
            f"{record.num_images:,}",
            *(f"{(mask & present).sum():,}" for mask in groups.values()),
            f"{sum(shard.num_bytes for shard in record.shards) / 1e6:,.1f}",
            f"{len(record.shards):,}",
        )
    console.print(table)
    lines = ["many, medium, few: classes of more than 100, 20 to 100, fewer than 20 for training", *manifest.notes]
    if written.num_converted:
        lines.append(f"{written.num_converted:,} images coded anew as 8-bit RGB (CMYK, palette, alpha, 16 bits, ...)")
    if written.num_resized:
        lines.append(f"{written.num_resized:,} images shrunk")
    if written.num_oriented:
        done = "were turned as their orientation tags say"
        if "orient" not in manifest.recipe.options:
            done = "have an orientation tag, which is ignored everywhere (--orient turns them)"
        lines.append(f"{written.num_oriented:,} images {done}")
    if written.num_bare:
        lines.append(f"{written.num_bare:,} images stored without their metadata, which not every decoder reads past")
    if written.num_paged:
        lines.append(f"{written.num_paged:,} images are the first of several pages or frames; the others are left out")
    if written.skipped:
        lines.append(f"{len(written.skipped):,} images left out, all in {out / SKIPPED_NAME}; the first:")
        lines += [f"  {skip}" for skip in written.skipped[:NUM_SKIPPED_SHOWN]]
    console.print("\n".join(map(printable, lines)), markup=False, highlight=False, soft_wrap=True)


def positive_int(text: str) -> int:
    """A whole number of at least 1."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1")
    return number


def _positive_float(text: str) -> float:
    if not 0 < (number := float(text)) < 1e9:
        raise argparse.ArgumentTypeError(f"{text}: must be above 0 and below a billion")
    return number


def _quality(text: str) -> int:
    if not 1 <= (number := int(text)) <= 100:
        raise argparse.ArgumentTypeError(f"{text}: must be from 1 to 100")
    return number


def _sixteen_bit(text: str) -> str:
    if text not in (FULL, RANGE):
        try:
            return format_range(*parse_range(text))
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text}: must be full, range, or LO,HI such as 0,4095") from error
    return text


def _fraction(text: str) -> float:
    if not 0 <= (number := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text}: must be from 0 to 1 (0.01 is one in a hundred)")
    return number


def _imbalance(text: str) -> float:
    if not 1 <= (number := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1 (largest class over smallest)")
    return number
