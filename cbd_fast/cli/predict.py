"""Classifies images with a finished model.

Images that cannot be read are reported on standard error, one on each line;
if there was one, the exit code is 1.
"""

import argparse
import csv
import io
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from cbd_fast.cli.plugins import add_plugin_option, load_plugins
from cbd_fast.errors import InputError, RunError, printable
from cbd_fast.files import user_path
from cbd_fast.inference.predictor import Prediction, Predictor
from cbd_fast.shards.sources.base import files_below
from cbd_fast.ui.console import make_console

# What is taken of a folder; a file that is named is tried whatever its name.
IMAGE_EXTENSIONS = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".gif"),
    *(".tif", ".tiff", ".avif", ".jp2", ".ppm", ".pgm", ".pnm", ".tga"),
}
NUM_IMAGES_PER_TABLE = 200  # so that there is something to see before thousands are done


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Predicts and prints.

    Args:
        argv: arguments of the command; by default those of this process.
        prog: name of the command, for its help.

    Raises:
        InputError: there is no such model, or no image.
        RunError: some images could not be read; the others were predicted.
    """
    arguments = parse_arguments(load_plugins(argv), prog)
    paths = list(find_images(arguments.images))
    num_bad = 0

    def readable(predictions: Iterator[Prediction]) -> Iterator[Prediction]:
        nonlocal num_bad
        for prediction in predictions:
            if prediction.error is not None:
                num_bad += 1
                print(f"{printable(prediction.name)}: {prediction.error}", file=sys.stderr)
            if prediction.error is None or arguments.format == "jsonl":
                yield prediction

    options = {"device": arguments.device, "batch_size": arguments.batch}
    with warnings.catch_warnings(), Predictor(arguments.model, **options) as predictor:
        warnings.filterwarnings("ignore", module=r"PIL\.")  # about odd metadata of images that decode well
        predictions = readable(predictor.stream(paths, arguments.top))
        if not print_pieces(WRITERS[arguments.format](predictions)):
            return  # nobody reads what comes now
    if num_bad:
        raise RunError(f"{num_bad:,} of {len(paths):,} images cannot be read")


def parse_arguments(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """The command line; errors in it end the program with exit code 2.

    Raises:
        InputError: a number is below 1.
    """
    parser = argparse.ArgumentParser(
        allow_abbrev=False,  # or a shortened --plugin would be taken, and not heard
        prog=prog or "cbd-fast predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=user_path, metavar="MODEL", help="a model's folder, such as runs/NAME/student")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files, or folders to be searched for images")
    parser.add_argument("--top", type=int, default=5, metavar="K", help="guesses for each image (default 5)")
    parser.add_argument("--format", choices=WRITERS, default="table", help="of the output (default table)")
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="images at a time (default 64)")
    parser.add_argument("--device", metavar="D", help="cpu, cuda or cuda:1 (default: the GPU, if any)")
    add_plugin_option(parser)
    arguments = parser.parse_intermixed_args(argv)
    for name in ("top", "batch"):
        if (number := getattr(arguments, name)) < 1:
            raise InputError(f"--{name} {number}: must be at least 1")
    return arguments


def find_images(names: Sequence[str]) -> Iterator[str]:
    """Files as they are named, and for a folder the image files in it and below, in sorted order.

    Raises:
        InputError: there is no image at all, or a folder cannot be listed.
    """
    is_empty = True
    for name in names:
        for path in _images_below(name) if os.path.isdir(name) else (name,):
            is_empty = False
            yield path
    if is_empty:
        raise InputError(f"{', '.join(names)}: no image files there, such as .jpg; name files or other folders")


def _images_below(root: str) -> list[str]:
    below = files_below(Path(root).resolve())
    visible = [name for name in below if not any(part.startswith(".") for part in name.split("/"))]
    return sorted(os.path.join(root, name) for name in visible if Path(name).suffix.lower() in IMAGE_EXTENSIONS)


def print_pieces(pieces: Iterator[str]) -> bool:
    """Prints each piece as soon as it is there; False if whoever read it, such as ``head``, has closed the pipe.

    Raises:
        RunError: the output cannot be written, as on a full disk.
    """
    out = sys.stdout
    if isinstance(out, io.TextIOWrapper):
        # a name that is no text is written as the bytes that it is; elsewhere what the terminal has not is spelled out
        out.reconfigure(errors="surrogateescape" if out.encoding.lower() == "utf-8" else "backslashreplace")
    for piece in pieces:
        try:
            out.write(piece)
            out.flush()
        except OSError as error:
            _discard_output()
            if isinstance(error, BrokenPipeError):
                return False
            raise RunError(f"the output cannot be written ({error.strerror})") from error
    return True


def _discard_output() -> None:
    """What is still to be written would fail again when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def as_jsonl(predictions: Iterator[Prediction]) -> Iterator[str]:
    """An object per image: its predictions, or the error."""
    for prediction in predictions:
        record: dict[str, Any] = {"image": prediction.name}
        if prediction.error is None:
            guesses = zip(prediction.labels, prediction.classes, prediction.probabilities, strict=True)
            record["predictions"] = [
                {"label": label, "class": name, "probability": chance} for label, name, chance in guesses
            ]
        else:
            record["error"] = prediction.error
        yield json.dumps(record) + "\n"


def as_csv(predictions: Iterator[Prediction]) -> Iterator[str]:
    """A line per image and guess, below a line of names."""
    yield _csv_line("image", "rank", "label", "class", "probability")
    for prediction in predictions:
        guesses = zip(prediction.labels, prediction.classes, prediction.probabilities, strict=True)
        for rank, guess in enumerate(guesses, 1):
            yield _csv_line(prediction.name, rank, *guess)


def _csv_line(*values: Any) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(printable(value, keep_bytes=True) for value in values)
    return line.getvalue()


def as_tables(predictions: Iterator[Prediction]) -> Iterator[str]:
    """A table for people; of many images one after the other."""
    console = make_console()
    while part := list(islice(predictions, NUM_IMAGES_PER_TABLE)):
        table = Table("image", "class", "%")
        table.columns[0].overflow = table.columns[1].overflow = "fold"  # nothing is cut off
        table.columns[2].justify = "right"
        for prediction in part:
            names = [prediction.name, *[""] * len(prediction.classes)]
            for name, guess, chance in zip(names, prediction.classes, prediction.probabilities, strict=False):
                table.add_row(Text(printable(name)), Text(printable(guess)), f"{100 * chance:.1f}")
            table.add_section()
        with console.capture() as captured:
            console.print(table)
        yield captured.get()


WRITERS: dict[str, Callable[[Iterator[Prediction]], Iterator[str]]] = {
    "table": as_tables,
    "csv": as_csv,
    "jsonl": as_jsonl,
}
