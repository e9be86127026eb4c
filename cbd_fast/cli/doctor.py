"""What limits training on this machine, and which setting to change.

It measures for half a minute: without --config only loading, with
class-balanced sampling; with it also training, in each stage of that run.
"""

import argparse
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from cbd_fast.cli.plugins import add_plugin_option, load_plugins
from cbd_fast.config.schema import Config
from cbd_fast.errors import InputError
from cbd_fast.files import user_path
from cbd_fast.preflight.bottlenecks import Findings, describe_bottlenecks
from cbd_fast.preflight.doctor import diagnose, specs_by_stage
from cbd_fast.resources import num_cores
from cbd_fast.shards.reader import ShardReader
from cbd_fast.training.context import open_shards
from cbd_fast.ui.console import make_console


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Measures and reports.

    Args:
        argv: arguments of the command; by default those of this process.
        prog: name of the command, for its help.
    """
    arguments = parse_arguments(load_plugins(argv), prog)
    shards = ShardReader(arguments.shards, "train")
    config = read_config(arguments, shards)
    specs = specs_by_stage(config, shards) if arguments.config else None
    console = make_console()
    with console.status("measuring"):
        measured, findings = diagnose(shards, config, arguments.seconds, specs)
    report(f"{arguments.shards}: {len(shards):,} images, {num_cores()} cores", measured, findings, console)


def parse_arguments(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """The command line.

    Raises:
        InputError: the duration is not above 0. (Other errors end the program with exit code 2.)
    """
    parser = argparse.ArgumentParser(
        allow_abbrev=False,  # or a shortened --plugin would be taken, and not heard
        prog=prog or "cbd_fast.doctor",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shards", type=user_path, required=True, metavar="DIR", help="a folder of shards")
    parser.add_argument("--config", type=user_path, metavar="FILE", help="settings of a run, in YAML")
    parser.add_argument("--seconds", type=float, default=30, metavar="S", help="duration (default 30)")
    add_plugin_option(parser)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the file's")
    arguments = parser.parse_intermixed_args(argv)  # settings may stand before, between and behind options
    if not arguments.seconds > 0:
        raise InputError(f"--seconds {arguments.seconds:g}: must be above 0")
    return arguments


def read_config(arguments: argparse.Namespace, shards: ShardReader) -> Config:
    """The settings of the run that is asked for, or the defaults.

    Raises:
        InputError: the settings cannot be read, or do not go with these shards.
    """
    if arguments.config:
        config = Config.from_file(arguments.config, [*arguments.overrides, f"data.shards={arguments.shards}"])
        open_shards(config)  # refuses what training on these shards would refuse
        return config
    if arguments.overrides:
        raise InputError(f"{arguments.overrides[0]!r}: settings need --config")
    data = {"shards": str(arguments.shards), "num_classes": max(2, shards.num_classes)}
    return Config.model_validate({"output": "", "data": data, "optimization": {"steps": 1}})


def report(title: str, measured: Mapping[str, float], findings: Findings, console: Console) -> None:
    """Prints a table of the rates, where the time of a batch goes, and what limits training."""
    table = Table("measured", "images/s", title=title)
    table.columns[1].justify = "right"
    for what, rate in measured.items():
        table.add_row(what, f"{rate:,.0f}")
    console.print(table)
    parts = ", ".join(f"{name} {value:.0f}" for name, value in findings.batch_milliseconds.items())
    console.print(f"Milliseconds of a batch from files, all threads together: {parts}", highlight=False, soft_wrap=True)
    for line in describe_bottlenecks(findings):
        console.print(f"- {line}", highlight=False, markup=False, soft_wrap=True)
