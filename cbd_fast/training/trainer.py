"""Trains teachers and a class-balanced student.

accelerate launch -m cbd_fast.train --config FILE [key=value ...]
"""

import argparse
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from cbd_fast.config.file import read_config
from cbd_fast.config.help import settings_text
from cbd_fast.config.schema import Config
from cbd_fast.errors import InputError, run_command
from cbd_fast.files import PARTIAL_SUFFIX
from cbd_fast.loading.loader import Loader
from cbd_fast.preflight.dry_run import Unwritten, rehearse
from cbd_fast.shards.reader import ShardSet
from cbd_fast.system import num_cores
from cbd_fast.training.checkpoint import read_result
from cbd_fast.training.context import Surroundings, make_loader
from cbd_fast.training.engine import train
from cbd_fast.training.plan import Job, build_stage, finished_results, plan_jobs, wanted_jobs
from cbd_fast.training.run_dir import CONFIG_NAME, SUMMARY_NAME, Records
from cbd_fast.training.selection import selection_interval
from cbd_fast.training.trackers import check_trackers, start_trackers, tracking_options
from cbd_fast.ui.console import make_console
from cbd_fast.ui.dashboard import Dashboard, PlannedModel, Silent, comparison, duration, make_dashboard

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
    jobs = plan_jobs(config, shards)
    wanted = wanted_jobs(jobs, config.stages)
    accelerator = make_accelerator(config)
    if arguments.dry_run:
        unwritten = Unwritten()
        with open_surroundings(config, shards, accelerator, unwritten, Silent()) as around:
            rehearse(wanted, around, unwritten.bad_pictures, describe_run(config, shards, accelerator))
        accelerator.end_training()
        return
    records = Records(Path(config.output), is_main=accelerator.is_main_process, rank=accelerator.process_index)
    dashboard = make_dashboard(accelerator.is_main_process)
    with open_surroundings(config, shards, accelerator, records, dashboard) as around:
        records.start(config)
        if config.trackers and accelerator.is_main_process:
            records.tell_also(start_trackers(config, accelerator, jobs))
        accelerator.wait_for_everyone()  # the folder is there for the records of all processes
        dashboard.start(describe_run(config, shards, accelerator), [planned(job) for job in wanted])
        try:
            run(wanted, around)
        finally:
            dashboard.stop()
    if accelerator.is_main_process:
        report(config, jobs, shards, records)
    accelerator.end_training()


@contextmanager
def open_surroundings(
    config: Config, shards: ShardSet, accelerator: Accelerator, records: Records, dashboard: Dashboard
) -> Iterator[Surroundings]:
    """Opens the splits to evaluate on, whose shards and decoder are found to be usable before anything is written."""

    def tell(place: str, reason: str) -> None:
        records.bad_picture(place, reason)
        dashboard.note(f"bad picture {place}: {reason}")

    def evaluated(split: str) -> Loader:
        augmentation = config.data.augmentation.for_test()
        chosen = {"sampling": "sequential", "augmentation": augmentation, "on_bad_picture": tell}
        return opened.enter_context(make_loader(config, accelerator, split=split, **chosen))

    interval = selection_interval(config, shards)
    with ExitStack() as opened:
        yield Surroundings(
            config=config,
            accelerator=accelerator,
            records=records,
            dashboard=dashboard,
            test_loader=evaluated("test"),
            val_loader=evaluated("val") if interval else None,
            evaluate_every=interval or config.runtime.evaluate_every,
            on_bad_picture=tell,
        )


def run(jobs: list[Job], around: Surroundings) -> None:
    """Trains the models one after the other, passing over those that are finished."""
    for job in jobs:
        if (result := read_result(job.folder)) is not None:
            around.dashboard.note(f"{job.name} is finished already")
            around.dashboard.evaluated(job.name, job.num_steps, result["metrics"])
            continue
        train(build_stage(job, around.config), around)


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
    if os.environ.get("RANK", "0") == "0":
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


def open_shards(config: Config) -> ShardSet:
    """Opens the training split and checks that the config is made for it."""
    shards = ShardSet(config.data.shards, "train")
    if shards.num_classes != config.data.num_classes:
        raise InputError(
            f"data.num_classes: {config.data.num_classes}, but {config.data.shards} has {shards.num_classes} "
            "classes; use the config that goes with these shards"
        )
    if "test" not in shards.manifest.splits:
        raise InputError(f"{config.data.shards}: has no test split to evaluate on; make the shards with --test")
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    share = num_processes * config.optimization.accumulation
    if config.optimization.global_batch // share < 2:
        raise InputError(
            f"optimization.global_batch: {config.optimization.global_batch} leaves each of {num_processes} processes x "
            f"accumulation {config.optimization.accumulation} fewer than 2 pictures, too few for batch-norm"
        )
    if config.optimization.global_batch % share:
        raise InputError(
            f"optimization.global_batch: {config.optimization.global_batch} is not a multiple of {num_processes} "
            f"processes x accumulation {config.optimization.accumulation} = {share}"
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


def planned(job: Job) -> PlannedModel:
    """A job as the dashboard knows it."""
    return PlannedModel(name=job.name, stage=job.stage, num_steps=job.num_steps, num_teachers=job.num_teachers)


def describe_run(config: Config, shards: ShardSet, accelerator: Accelerator) -> str:
    """The run in one line."""
    device = torch.cuda.get_device_name() if accelerator.device.type == "cuda" else "CPU"
    precision = "float32" if config.mixed_precision == "no" else config.mixed_precision
    return (
        f"{config.output}: {config.model.backbone} on {config.data.shards} ({len(shards):,} pictures, "
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


def report(config: Config, jobs: list[Job], shards: ShardSet, records: Records) -> None:
    """Writes summary.json and per_class.csv and prints the comparison of all models that are finished."""
    results = finished_results(jobs)
    metrics = {name: result["metrics"] for name, result in results.items()}
    seconds = sum(result["seconds"] for result in results.values())
    records.summarize(
        {
            "teachers": [values for name, values in metrics.items() if name != "student"],
            "student": metrics.get("student"),
            "selected": selected(results),
            "evaluated_on": "test",
            "seconds": round(seconds, 1),
        }
    )
    counts = {name: np.array(result["counts"]) for name, result in results.items()}
    records.write_per_class(shards.manifest.classes, shards.record.class_counts, counts)
    console = make_console()
    steps = {job.name: job.num_steps for job in jobs}
    steps |= {name: result["selected"]["step"] for name, result in results.items() if result.get("selected")}
    console.print(comparison({name: (steps[name], metrics[name]) for name in metrics}))
    written = f"{Path(config.output) / SUMMARY_NAME}: trained in {duration(seconds)}"
    console.print(written, highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    run_command(main)
