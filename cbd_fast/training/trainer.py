"""Trains teachers and a class-balanced student.

accelerate launch -m cbd_fast.train --config FILE [key=value ...]
"""

import argparse
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from cbd_fast.cli.command import run_command
from cbd_fast.config.file import read_config
from cbd_fast.config.help import settings_text
from cbd_fast.config.schema import Config
from cbd_fast.errors import InputError
from cbd_fast.files import PARTIAL_SUFFIX
from cbd_fast.loading.loader import Loader
from cbd_fast.preflight.dry_run import NullRunDir, rehearse
from cbd_fast.processes import env_rank, env_world_size
from cbd_fast.shards.reader import ShardReader
from cbd_fast.system import num_cores
from cbd_fast.training.checkpoint import read_result
from cbd_fast.training.context import RunContext, make_loader
from cbd_fast.training.engine import train
from cbd_fast.training.plan import ModelSpec, build_setup, finished_results, models_to_train, plan_models
from cbd_fast.training.run_dir import CONFIG_NAME, SUMMARY_NAME, RunDir
from cbd_fast.training.selection import selection_interval
from cbd_fast.training.trackers import check_trackers, start_trackers, tracking_options
from cbd_fast.ui.console import make_console
from cbd_fast.ui.dashboard import Dashboard, NullDashboard, PlannedModel, comparison, duration, make_dashboard

MAX_HELP_WIDTH = 100  # longer lines are hard to read


def main() -> None:
    """Checks everything, trains what is not finished, and reports."""
    arguments = parse_arguments()
    config = read_config(arguments.config, arguments.overrides)
    check_trackers(config.trackers)
    if arguments.print_config:
        print_config(config)
        return
    check_output(Path(config.output))
    shards = open_shards(config)
    specs = plan_models(config, shards)
    wanted = models_to_train(specs, config.stages)
    accelerator = make_accelerator(config)
    if arguments.dry_run:
        null_run_dir = NullRunDir()
        with open_context(config, shards, accelerator, null_run_dir, NullDashboard()) as context:
            rehearse(wanted, context, null_run_dir.bad_images, describe_run(config, shards, accelerator))
        accelerator.end_training()
        return
    run_dir = RunDir(Path(config.output), is_main=accelerator.is_main_process, rank=accelerator.process_index)
    dashboard = make_dashboard(accelerator.is_main_process)
    with open_context(config, shards, accelerator, run_dir, dashboard) as context:
        run_dir.start(config)
        if config.trackers and accelerator.is_main_process:
            run_dir.add_listener(start_trackers(config, accelerator, specs))
        accelerator.wait_for_everyone()  # the folder is there for the records of all processes
        dashboard.start(describe_run(config, shards, accelerator), [planned(spec) for spec in wanted])
        try:
            run(wanted, context)
        finally:
            dashboard.stop()
    if accelerator.is_main_process:
        report(config, specs, shards, run_dir)
    accelerator.end_training()


@contextmanager
def open_context(
    config: Config, shards: ShardReader, accelerator: Accelerator, run_dir: RunDir, dashboard: Dashboard
) -> Iterator[RunContext]:
    """Opens the splits to evaluate on, whose shards and decoder are found to be usable before anything is written."""

    def tell(place: str, reason: str) -> None:
        run_dir.bad_image(place, reason)
        dashboard.note(f"bad image {place}: {reason}")

    def evaluated(split: str) -> Loader:
        augmentation = config.data.augmentation.for_test()
        chosen = {"sampling": "sequential", "augmentation": augmentation, "on_bad_image": tell}
        return opened.enter_context(make_loader(config, accelerator, split=split, **chosen))

    interval = selection_interval(config, shards)
    with ExitStack() as opened:
        yield RunContext(
            config=config,
            accelerator=accelerator,
            run_dir=run_dir,
            dashboard=dashboard,
            test_loader=evaluated("test"),
            val_loader=evaluated("val") if interval else None,
            evaluate_every=interval or config.runtime.evaluate_every,
            on_bad_image=tell,
        )


def run(specs: list[ModelSpec], context: RunContext) -> None:
    """Trains the models one after the other, passing over those that are finished."""
    for spec in specs:
        if (result := read_result(spec.folder)) is not None:
            context.dashboard.note(f"{spec.name} is finished already")
            context.dashboard.evaluated(spec.name, spec.num_steps, result["metrics"])
            continue
        train(build_setup(spec, context.config), context)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    width = min(shutil.get_terminal_size().columns, MAX_HELP_WIDTH)
    parser = argparse.ArgumentParser(
        prog="cbd_fast.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=settings_text(Config, width),
    )
    parser.add_argument("--config", type=Path, metavar="FILE", required=True, help="settings of the run, in YAML")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--print-config", action="store_true", help="print all settings, as YAML that can be run again, and exit"
    )
    instead.add_argument(
        "--dry-run",
        action="store_true",
        help="check all that a run needs, time a few steps, print the plan and exit; nothing is written",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings that replace the file's; all are below"
    )
    return parser.parse_intermixed_args()  # settings may stand before, between and behind options


def print_config(config: Config) -> None:
    """Prints all settings, once, however many processes there are."""
    if env_rank() == 0:
        sys.stdout.write(config.to_yaml())


def check_output(folder: Path) -> None:
    """Refuses a folder that holds anything but a run or finished teachers, which may be copies from other runs."""
    try:
        paths = folder.iterdir() if folder.exists() else ()
        names = {path.name for path in paths if not is_teacher(path)}
    except OSError as error:
        raise InputError(f"output: {folder} cannot be used ({error.strerror}); choose another output") from error
    if names - {CONFIG_NAME + PARTIAL_SUFFIX}:  # which a kill may have left
        try:
            read_config(folder / CONFIG_NAME)
        except InputError as error:
            raise InputError(
                f"output: {folder} already holds something that is no run of this version ({error}); "
                "choose another output or empty it"
            ) from error


def is_teacher(folder: Path) -> bool:
    """Whether a folder is that of a finished teacher."""
    return folder.name.startswith("teacher-") and "identity" in (read_result(folder) or {})


def open_shards(config: Config) -> ShardReader:
    """Opens the training split and checks that the config is made for it."""
    shards = ShardReader(config.data.shards, "train")
    if shards.num_classes != config.data.num_classes:
        raise InputError(
            f"data.num_classes: {config.data.num_classes}, but {config.data.shards} has {shards.num_classes} "
            "classes; use the config that goes with these shards"
        )
    if "test" not in shards.manifest.splits:
        raise InputError(f"{config.data.shards}: has no test split to evaluate on; make the shards with --test")
    num_processes = env_world_size()
    num_parts = num_processes * config.optimization.accumulation
    if config.optimization.global_batch // num_parts < 2:
        raise InputError(
            f"optimization.global_batch: {config.optimization.global_batch} leaves each of {num_processes} processes x "
            f"accumulation {config.optimization.accumulation} fewer than 2 images, too few for batch-norm"
        )
    if config.optimization.global_batch % num_parts:
        raise InputError(
            f"optimization.global_batch: {config.optimization.global_batch} is not a multiple of {num_processes} "
            f"processes x accumulation {config.optimization.accumulation} = {num_parts}"
        )
    return shards


def make_accelerator(config: Config) -> Accelerator:
    """Joins the processes; on the CPU where there is no accelerator."""
    torch.backends.cudnn.benchmark = True  # every batch has the same shape
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.optimization.accumulation,
        cpu=not torch.cuda.is_available(),
        **tracking_options(config),
    )
    if accelerator.device.type == "cpu":
        # the launcher has set one thread, whatever the machine has
        torch.set_num_threads(config.runtime.num_threads or num_cores())
    if config.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        # Accelerate would silently compute in float32 here; PyTorch itself does know fp16 on the CPU
        accelerator.native_amp, accelerator.scaler = True, torch.amp.GradScaler("cpu")
    return accelerator


def planned(spec: ModelSpec) -> PlannedModel:
    """A spec as the dashboard knows it."""
    return PlannedModel(name=spec.name, stage=spec.stage, num_steps=spec.num_steps, num_teachers=spec.num_teachers)


def describe_run(config: Config, shards: ShardReader, accelerator: Accelerator) -> str:
    """The run in one line."""
    device = torch.cuda.get_device_name() if accelerator.device.type == "cuda" else "CPU"
    precision = "float32" if config.mixed_precision == "no" else config.mixed_precision
    return (
        f"{config.output}: {config.model.backbone} on {config.data.shards} ({len(shards):,} images, "
        f"{shards.num_classes:,} classes), {accelerator.num_processes} x {device}, {precision}"
    )


def selected(results: dict[str, dict[str, Any]]) -> str | dict[str, str]:
    """Which weights the accuracies are of."""
    best = {name: result.get("selected") for name, result in results.items()}
    if not any(best.values()):
        return "last checkpoint"
    return {
        name: f"best on the validation split: step {found['step']} with {found['per_class_mean']:.2f} per-class mean"
        for name, found in best.items()
        if found
    }


def report(config: Config, specs: list[ModelSpec], shards: ShardReader, run_dir: RunDir) -> None:
    """Writes summary.json and per_class.csv and prints the comparison of all models that are finished."""
    results = finished_results(specs)
    metrics = {name: result["metrics"] for name, result in results.items()}
    seconds = sum(result["seconds"] for result in results.values())
    run_dir.summarize(
        {
            "teachers": [values for name, values in metrics.items() if name != "student"],
            "student": metrics.get("student"),
            "selected": selected(results),
            "evaluated_on": "test",
            "seconds": round(seconds, 1),
        }
    )
    counts = {name: np.array(result["counts"]) for name, result in results.items()}
    run_dir.write_per_class(shards.manifest.classes, shards.record.class_counts, counts)
    console = make_console()
    steps = {spec.name: spec.num_steps for spec in specs}
    steps |= {name: result["selected"]["step"] for name, result in results.items() if result.get("selected")}
    console.print(comparison({name: (steps[name], metrics[name]) for name in metrics}))
    written = f"{Path(config.output) / SUMMARY_NAME}: trained in {duration(seconds)}"
    console.print(written, highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    run_command(main)
