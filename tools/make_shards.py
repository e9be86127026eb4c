"""Turns a dataset into WebDataset shards with an index by class.

python tools/make_shards.py digits --out shards/digits_lt
python tools/make_shards.py folder --train DIR --test DIR --imbalance 100 --out shards/NAME
python tools/make_shards.py list --images ROOT --train LIST --test LIST --preset imagenet-lt --out shards/NAME

Interrupted, the same command goes on where it stopped. make_shards.py SOURCE --help shows the options of a source.
"""

import argparse
from pathlib import Path

from cbd_fast.cli.command import run_command
from cbd_fast.cli.shard_options import (
    add_layout_options,
    add_options,
    layout_from,
    progress_on,
    report,
    write_options_from,
)
from cbd_fast.shards.sources.archives import cifar_source, digits_source
from cbd_fast.shards.sources.base import SPLITS
from cbd_fast.shards.sources.image_folder import Source, folder_source, list_source, tiny_imagenet_source
from cbd_fast.shards.sources.inaturalist import inaturalist_source
from cbd_fast.shards.sources.webdataset import webdataset_source
from cbd_fast.shards.writing.dataset_writer import write_dataset
from cbd_fast.ui.console import make_console


def main() -> None:
    """Parses the command line, writes the shards, prints what was written."""
    parser = make_parser()
    arguments = parser.parse_args()
    options = write_options_from(arguments, parser)
    console = make_console()
    with progress_on(console) as progress:
        written = write_dataset(
            read_source(arguments), arguments.out, options, num_workers=arguments.workers, progress=progress
        )
    report(written, arguments.out, console)


def make_parser() -> argparse.ArgumentParser:
    """The command line; errors in it end the program with exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sources = parser.add_subparsers(dest="source", required=True, metavar="SOURCE")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        source = sources.add_parser(name, help=text, description=text)
        add_options(source, name)
        return source

    add("digits", "scikit-learn's handwritten digits, long-tailed")

    source = add("folder", "one folder per split, with one folder of images per class in it")
    source.add_argument("--train", type=Path, required=True, metavar="DIR", help="its folders name the classes")
    source.add_argument("--val", type=Path, metavar="DIR")
    source.add_argument("--test", type=Path, metavar="DIR")

    source = add("list", "text files with a line 'relative/path label' per image, as of ImageNet-LT and Places-LT")
    source.add_argument("--images", type=Path, required=True, metavar="ROOT", help="where the paths start")
    source.add_argument("--train", type=Path, required=True, metavar="LIST")
    source.add_argument("--val", type=Path, metavar="LIST")
    source.add_argument("--test", type=Path, metavar="LIST")
    source.add_argument("--classes", type=Path, metavar="FILE", help="names of the classes, one per line")

    source = add("inaturalist", "the JSON files of the competitions of 2017, 2018, 2019 and 2021")
    source.add_argument("--images", type=Path, required=True, metavar="ROOT", help="where the file names start")
    source.add_argument("--train", type=Path, required=True, metavar="JSON")
    source.add_argument("--val", type=Path, metavar="JSON", help="becomes the test split, as in the literature")

    for name, text in (
        ("tiny-imagenet", "the folder tiny-imagenet-200; its val becomes the test split, as in the literature"),
        ("cifar10", "the official python archive, downloaded into the folder where it is not there"),
        ("cifar100", "the official python archive, downloaded into the folder where it is not there"),
    ):
        add(name, text).add_argument("folder", type=Path, metavar="DIR")

    source = add("webdataset", "tars that somebody else wrote (tools/index_shards.py uses them as they are)")
    add_layout_options(source)
    return parser


def read_source(arguments: argparse.Namespace) -> Source:
    """Opens the source that was asked for."""
    match arguments.source:
        case "digits":
            return digits_source(arguments.seed)
        case "cifar10" | "cifar100":
            return cifar_source(arguments.source, arguments.folder)
        case "tiny-imagenet":
            return tiny_imagenet_source(arguments.folder)
        case "webdataset":
            return webdataset_source(arguments.folder, layout_from(arguments))
        case "inaturalist":
            annotations = {"train": arguments.train} | ({"test": arguments.val} if arguments.val else {})
            return inaturalist_source(arguments.images, annotations)
    paths = {split: path for split in SPLITS if (path := getattr(arguments, split))}
    if arguments.source == "list":
        return list_source(arguments.images, paths, arguments.classes)
    return folder_source(paths)


if __name__ == "__main__":
    run_command(main)
