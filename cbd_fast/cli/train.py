"""Trains teachers and a class-balanced student.

accelerate launch -m cbd_fast.train --config FILE [key=value ...]
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.text import Text

from cbd_fast.cli.command import EXIT_BAD_INPUT
from cbd_fast.cli.plugins import add_plugin_option, load_plugins
from cbd_fast.config.help import settings_text
from cbd_fast.config.schema import Config
from cbd_fast.errors import InputError
from cbd_fast.files import user_path
from cbd_fast.preflight.dry_run import dry_run
from cbd_fast.processes import check_launcher, env_rank, number_among_started
from cbd_fast.training.context import describe_run, make_accelerator, open_context
from cbd_fast.training.global_state import global_state_restored
from cbd_fast.training.peers import Peers
from cbd_fast.training.plan import models_to_train
from cbd_fast.training.run_dir import SUMMARY_NAME, NullRunDir
from cbd_fast.training.trackers import check_trackers
from cbd_fast.training.trainer import Trainer, check_run
from cbd_fast.ui.console import make_console
from cbd_fast.ui.dashboard import NullDashboard, comparison, duration

MAX_HELP_WIDTH = 100  # longer lines are hard to read


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Checks everything, trains what is not finished, and reports."""
    arguments = parse_arguments(load_plugins(argv), prog)
    config = Config.from_file(arguments.config, arguments.overrides)
    check_trackers(config.trackers)
    if arguments.print_config:
        if env_rank() == 0:  # once, however many processes there are
            sys.stdout.write(config.to_yaml())
        return
    try:
        check_launcher()
    except InputError:
        if number_among_started():  # all of them find the same
            sys.exit(EXIT_BAD_INPUT)
        raise
    if arguments.dry_run:
        try_run(config)
    else:
        fit(config)
    # not after an error, which the processes still have to tell each other
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def fit(config: Config) -> None:
    """Trains, and prints the comparison of all models that are finished."""
    trainer = Trainer(config)
    summary = trainer.fit()
    if env_rank() != 0:
        return
    steps = {spec.name: spec.num_steps for spec in trainer.specs}
    steps |= {name: result["selected"]["step"] for name, result in trainer.results.items() if result.get("selected")}
    console = make_console()
    console.print(comparison({name: (steps[name], result["metrics"]) for name, result in trainer.results.items()}))
    for warning in summary["warnings"]:
        console.print(Text(f"warning: {warning}", "yellow"), soft_wrap=True)
    written = f"{Path(config.output) / SUMMARY_NAME}: trained in {duration(summary['seconds'])}"
    console.print(written, highlight=False, markup=False, soft_wrap=True)


def try_run(config: Config) -> None:
    """Checks all that a run needs and prints what it would do; nothing is written."""
    shards, specs = check_run(config)
    specs = models_to_train(specs, config.stages)
    with global_state_restored():
        accelerator = make_accelerator(config)
        nothing = NullRunDir(), NullDashboard()
        with Peers(accelerator).explained(), open_context(config, shards, accelerator, *nothing) as context:
            dry_run(specs, context, describe_run(config, shards, accelerator))


def parse_arguments(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """The command line; errors in it end the program with exit code 2."""
    width = min(shutil.get_terminal_size().columns, MAX_HELP_WIDTH)
    parser = argparse.ArgumentParser(
        allow_abbrev=False,  # or a shortened --plugin would be taken, and not heard
        prog=prog or "cbd_fast.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=settings_text(Config, width),
    )
    parser.add_argument("--config", type=user_path, metavar="FILE", required=True, help="settings of the run, in YAML")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--print-config", action="store_true", help="print all settings, as YAML that can be run again, and exit"
    )
    instead.add_argument(
        "--dry-run",
        action="store_true",
        help="check all that a run needs, time a few steps, print the plan and exit; nothing is written",
    )
    add_plugin_option(parser)
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings that replace the file's; all are below"
    )
    return parser.parse_intermixed_args(argv)  # settings may stand before, between and behind options
