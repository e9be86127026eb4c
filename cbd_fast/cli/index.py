"""``cbd-fast index DIR``: makes WebDataset shards that somebody else wrote class-balanced."""

import argparse
from collections.abc import Sequence

from cbd_fast.cli.shard_options import add_source_options, bar_on, report, write_options_from
from cbd_fast.registry import SOURCES
from cbd_fast.shards.writing.dataset_writer import write_dataset
from cbd_fast.shards.writing.index_in_place import index_dataset
from cbd_fast.ui.console import make_console

DESCRIPTION = """\
Makes WebDataset shards that somebody else wrote class-balanced: indexes them where they are, untouched.

{command} DIR
{command} DIR --train 'train-*.tar' --test 'val-*.tar' --label-key annotation.category
{command} DIR --out shards/NAME [--short-side 256]    # writes them anew instead
"""
SOURCE = "webdataset"
ONLY_WITH_OUT = ("imbalance", "val_per_class", "short_side", "max_side", "quality", "orient", "sixteen_bit")


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Indexes or rewrites the shards and prints what was done.

    Args:
        argv: arguments of the command; by default those of this process.
        prog: name of the command, for its help.
    """
    parser = make_parser(prog)
    arguments = parser.parse_args(argv)
    for name in ONLY_WITH_OUT:
        if arguments.out is None and getattr(arguments, name) is not None:
            parser.error(f"--{name.replace('_', '-')} changes what is in the shards: it needs --out")
    options = write_options_from(arguments, parser)
    source = SOURCES[SOURCE].open(arguments)
    console = make_console()
    with bar_on(console) as listener:
        write = index_dataset if arguments.out is None else write_dataset
        folder = arguments.out or arguments.folder
        written = write(source, folder, options, num_workers=arguments.workers, listener=listener)
    report(written, folder, console)


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The command line; errors in it end the program with exit code 2.

    Args:
        prog: name of the command, for its help; by default that of tools/index_shards.py.
    """
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog=prog,
        description=DESCRIPTION.format(command=prog or "python tools/index_shards.py"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_source_options(parser, SOURCE, is_out_required=False)
    parser.set_defaults(source=SOURCE)
    return parser
