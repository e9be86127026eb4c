"""``cbd-fast SUBCOMMAND``: the one console command.

A subcommand is a module of this folder with ``main(argv, prog)``, and a line in ``SUBCOMMANDS``; it is imported only
when it is asked for.
"""

import difflib
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from cbd_fast.cli.command import EXIT_BAD_INPUT, run_command
from cbd_fast.errors import InputError
from cbd_fast.version import __version__

PROG, OPTIONS = "cbd-fast", ("--help", "--version")
SUBCOMMANDS = {
    "shards": "turn a dataset into shards with an index by class",
    "index": "index WebDataset shards that somebody else wrote, where they are",
    "verify": "check shards, and mark bad images",
    "train": "train teachers, then the student that follows them",
    "doctor": "say what limits training on this machine",
    "predict": "classify images with a finished model",
}
HELP = """\
usage: {prog} SUBCOMMAND ...
       {prog} SUBCOMMAND --help
       {prog} --version

Class-Balanced Distillation for long-tailed recognition, and a loader for it.

subcommands:
{subcommands}

examples:
  {prog} shards digits --out shards/digits_lt
  {prog} train --config configs/digits_lt.yaml

On several GPUs: accelerate launch -m cbd_fast.train --config FILE
"""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs a subcommand and exits: 0 done, 1 failed, 2 bad input, 128 + n ended by signal n.

    Args:
        argv: the subcommand and its arguments; by default those of this process.
    """
    run_command(lambda: run(sys.argv[1:] if argv is None else argv))


def run(argv: Sequence[str]) -> None:
    """Runs a subcommand, or prints the help or the version.

    Raises:
        InputError: there is no such subcommand, or its input cannot be used.
        RunError: it failed.
    """
    if not argv:
        sys.stderr.write(help_text())
        sys.exit(EXIT_BAD_INPUT)
    name, *arguments = argv
    if name in ("-h", "--help"):
        sys.stdout.write(help_text())
    elif name == "--version":
        print(f"{PROG} {__version__}")
    elif name in SUBCOMMANDS:
        import_module(f"cbd_fast.cli.{name}").main(arguments, prog=f"{PROG} {name}")
    else:
        close = difflib.get_close_matches(name, (*SUBCOMMANDS, *OPTIONS), n=1)
        hint = f"did you mean {close[0]}?" if close else f"it must be one of {', '.join(SUBCOMMANDS)}"
        raise InputError(f"{PROG} {name}: no such {'option' if name.startswith('-') else 'subcommand'}; {hint}")


def help_text() -> str:
    """The help, which fits a screen."""
    width = max(map(len, SUBCOMMANDS))
    lines = [f"  {name:{width}}  {meaning}" for name, meaning in SUBCOMMANDS.items()]
    return HELP.format(prog=PROG, subcommands="\n".join(lines))


if __name__ == "__main__":
    main()
