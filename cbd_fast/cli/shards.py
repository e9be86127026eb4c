"""``cbd-fast shards SOURCE ...``: turns a dataset into shards. The subcommands are the entries of ``SOURCES``."""

import argparse
from collections.abc import Sequence

from cbd_fast.cli.plugins import add_plugin_option, load_plugins
from cbd_fast.cli.shard_options import add_source_options, bar_on, report, write_options_from
from cbd_fast.errors import InputError
from cbd_fast.registry import SOURCES
from cbd_fast.shards.writing.dataset_writer import write_dataset
from cbd_fast.ui.console import make_console

DESCRIPTION = """\
Turns a dataset into WebDataset shards with an index by class.

{command} digits --out shards/digits_lt
{command} folder --train DIR --test DIR --imbalance 100 --out shards/NAME
{command} list --images ROOT --train LIST --test LIST --preset imagenet-lt --out shards/NAME

Interrupted, the same command goes on where it stopped. SOURCE --help shows the options of a source.
"""


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Writes the shards and prints what was written.

    Args:
        argv: arguments of the command; by default those of this process.
        prog: name of the command, for its help.
    """
    others = load_plugins(argv)
    parser = make_parser(prog)
    arguments = parser.parse_args(others)
    options = write_options_from(arguments, parser)
    console = make_console()
    with bar_on(console) as listener:
        source = SOURCES[arguments.source].open(arguments)
        written = write_dataset(source, arguments.out, options, num_workers=arguments.workers, listener=listener)
    report(written, arguments.out, console)


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The command line; errors in it end the program with exit code 2.

    Args:
        prog: name of the command, for its help; by default that of tools/make_shards.py.

    Raises:
        InputError: a user's own source has an option that every source has.
    """
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog=prog,
        description=DESCRIPTION.format(command=prog or "python tools/make_shards.py"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_plugin_option(parser)
    sources = parser.add_subparsers(dest="source", required=True, metavar="SOURCE")
    for name, line in SOURCES.describe().items():
        text = line.removesuffix(".").replace("%", "%%")
        try:
            add_source_options(sources.add_parser(name, help=text, description=text, allow_abbrev=False), name)
        except argparse.ArgumentError as error:
            raise InputError(f"source {name!r}: {error}; rename its option") from error
    return parser
