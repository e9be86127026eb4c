"""A run without learning: checks all that it needs, times a few true steps, and says what it would do and write."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table

from cbd_fast.config.schema import Config
from cbd_fast.errors import InputError
from cbd_fast.preflight.probe import ProbeResult, probe_model
from cbd_fast.preflight.throughput import fresh_setup
from cbd_fast.resources import available_bytes
from cbd_fast.training.checkpoint import MODEL_NAME, RESULT_NAME, load_checkpoint, read_state
from cbd_fast.training.context import RunContext
from cbd_fast.training.model_folder import CARD_NAME, read_model
from cbd_fast.training.optim import make_optimizer
from cbd_fast.training.plan import ModelSpec
from cbd_fast.training.run_dir import CONFIG_NAME, METRICS_NAME, PER_CLASS_NAME, SUMMARY_NAME
from cbd_fast.training.selection import Best
from cbd_fast.training.trackers import FOLDER_NAME
from cbd_fast.ui.console import make_console

# besides the checkpoints that are kept: the oldest goes when the new one is whole
NUM_NEW_CHECKPOINTS = 1
NUM_NEW_BEST = 2  # best weights besides those of the checkpoints: those of now, and new ones being written


class Evaluations(NamedTuple):
    """The evaluations of a model.

    Attributes:
        num_test: images of the test split, on which the last evaluation is.
        interval: steps between two evaluations before the last; None without any.
        num_val: images of the validation split if it selects the weights: all evaluations but the last are on it, and
            one more at the last step; otherwise 0.
    """

    num_test: int
    interval: int | None = None
    num_val: int = 0


@dataclass(frozen=True, kw_only=True)
class RemainingWork:
    """What is left to do of a model.

    Attributes:
        spec: the model.
        num_done: steps up to its last checkpoint.
        probe: speed and memory of its kind on this machine; None if it is finished.
    """

    spec: ModelSpec
    num_done: int
    probe: ProbeResult | None

    def training_seconds(self, global_batch: int) -> float:
        """Time of the steps that are left."""
        if self.probe is None:
            return 0.0
        return (self.spec.num_steps - self.num_done) * global_batch / self.probe.training_rate

    def evaluation_seconds(self, evaluations: Evaluations) -> float:
        """Time of the evaluations that are left."""
        if self.probe is None:
            return 0.0
        num_test, interval, num_val = evaluations
        num_before_last = max(0, (self.spec.num_steps - 1) // interval - self.num_done // interval) if interval else 0
        return (num_before_last * (num_val or num_test) + num_val + num_test) / self.probe.evaluation_rate

    def disk_bytes(self, checkpoint_every: int, num_best: int = 0, max_checkpoints: int = 2) -> tuple[int, int]:
        """Bytes of the finished model on the disk, and those of its checkpoints and best weights until then."""
        if self.probe is None:
            return 0, 0
        num_checkpoints = min(max_checkpoints, (self.spec.num_steps - 1) // checkpoint_every)
        weights = self.probe.weight_bytes
        return weights, num_checkpoints * (weights + self.probe.optimizer_bytes) + num_best * weights


def dry_run(specs: Sequence[ModelSpec], context: RunContext, title: str) -> None:
    """Checks and measures what a run needs, on all processes, and prints it on the main one.

    Args:
        specs: models in the order in which they are trained.
        context: as for training, but with a ``NullRunDir``, which writes nothing.
        title: the run in one line.

    Raises:
        InputError: the folder, a checkpoint, the memory or the disk is not fit for the run.
        RunError: too many images cannot be decoded.
    """
    config, accelerator = context.config, context.accelerator
    folder = Path(config.output)
    check_writable(folder)
    console = make_console(quiet=not accelerator.is_main_process)
    remaining = plan_remaining(specs, context, console)
    keep, every = config.runtime.keep_checkpoints, config.runtime.checkpoint_interval(specs[0].num_steps)
    num_best = keep + NUM_NEW_BEST if context.val_loader else 0
    needed = needed_disk_bytes(remaining, every, num_best, keep + NUM_NEW_CHECKPOINTS)
    free = free_disk_bytes(folder)
    if needed > free:
        raise InputError(
            f"output: {folder} needs up to {format_bytes(needed)} for models and checkpoints, but only "
            f"{format_bytes(free)} are free there; choose another output or make room"
        )
    evaluations = Evaluations(
        num_test=len(context.test_loader.shards),
        interval=context.evaluate_every,
        num_val=len(context.val_loader.shards) if context.val_loader else 0,
    )
    lines = [
        *summary_lines(remaining, config, evaluations),
        memory_line(remaining, accelerator),
        f"disk: at most {format_bytes(needed)} of {format_bytes(free)} that are free",
        *bad_image_lines(context.run_dir.bad_images),
        *written_lines(remaining, config),
    ]
    in_pipe = not console.is_terminal  # where lines stay whole
    console.print(title, highlight=False, markup=False, soft_wrap=in_pipe)
    console.print(make_table(remaining, config, evaluations))
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=in_pipe)


def plan_remaining(specs: Sequence[ModelSpec], context: RunContext, console: Console) -> list[RemainingWork]:
    """What is left to do of each model, after a look at its files and a probe of one model of each kind."""
    probes: dict[tuple[str, int], ProbeResult] = {}
    remaining = []
    for spec in specs:
        check_saved(spec, context.config)
        kind = (spec.stage, spec.num_teachers)
        if not spec.is_finished and kind not in probes:
            with console.status(f"timing a few steps of {spec.name}"):
                probes[kind] = probe_model(spec, context)
        state = read_state(spec.folder)
        probe = None if spec.is_finished else probes[kind]
        remaining.append(RemainingWork(spec=spec, num_done=state.step if state else 0, probe=probe))
    return remaining


def check_writable(folder: Path) -> None:
    """Checks that a folder can be written, or made.

    Raises:
        InputError: it cannot.
    """
    parent = nearest_existing(folder)
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"output: {folder} cannot be written ({parent} is no folder that you can write in)")


def check_saved(spec: ModelSpec, config: Config) -> None:
    """Reads a model's finished weights or its checkpoint, if there are any, as the run will.

    Raises:
        InputError: they are damaged.
    """
    if spec.is_finished:
        read_model(spec.folder)
    elif read_state(spec.folder):
        model = fresh_setup(spec, config).model
        loaded = load_checkpoint(spec.folder, model, make_optimizer(model, config.optimization))
        if loaded and loaded.state.best:
            Best(spec.folder, is_main=False, checkpoint=loaded.state)


def needed_disk_bytes(
    remaining: Sequence[RemainingWork], checkpoint_every: int, num_best: int = 0, max_checkpoints: int = 2
) -> int:
    """The most that a run adds on the disk: all finished models, and what one model has while it is trained."""
    sizes = [work.disk_bytes(checkpoint_every, num_best, max_checkpoints) for work in remaining]
    return sum(finished for finished, _ in sizes) + max((in_training for _, in_training in sizes), default=0)


def free_disk_bytes(folder: Path) -> int:
    """Bytes that are free where a folder is, or will be."""
    return shutil.disk_usage(nearest_existing(folder)).free


def nearest_existing(folder: Path) -> Path:
    """The folder itself, or the nearest folder above it that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def make_table(remaining: Sequence[RemainingWork], config: Config, evaluations: Evaluations) -> Table:
    """A table of the models, one per row."""
    table = Table()
    table.add_column("model")
    for name in ("stage", "steps", "done", "images/s", "time left", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    for work in remaining:
        spec, probe = work.spec, work.probe
        cells = [spec.name, spec.stage, f"{spec.num_steps:,}"]
        if probe is None:
            cells += ["all", "-", "-", "-"]
        else:
            seconds = work.training_seconds(config.optimization.global_batch) + work.evaluation_seconds(evaluations)
            cells += [f"{work.num_done:,}", f"{probe.training_rate:,.0f}"]
            cells += [format_seconds(seconds), format_bytes(probe.peak_bytes)]
        table.add_row(*cells)
    return table


def summary_lines(remaining: Sequence[RemainingWork], config: Config, evaluations: Evaluations) -> Iterator[str]:
    """The time of the whole run, and the decoded cache of each stage."""
    training = sum(work.training_seconds(config.optimization.global_batch) for work in remaining)
    evaluation = sum(work.evaluation_seconds(evaluations) for work in remaining)
    total = format_seconds(training + evaluation)
    yield f"time: about {total} in all, {format_seconds(evaluation)} of it for evaluation"
    caches = {work.spec.stage: work.probe.cache for work in remaining if work.probe and work.probe.cache}
    for stage, cache in caches.items():
        yield (
            f"decoded cache of the {stage}: {cache.num_images:,} images, {format_bytes(cache.num_bytes)} of "
            f"{format_bytes(cache.free_bytes)} that {cache.memory} has left"
        )
    if caches:
        yield "the speed was measured without cached images, which can only make loading faster"


def memory_line(remaining: Sequence[RemainingWork], accelerator: Accelerator) -> str:
    """The most memory that a process takes, and what there is."""
    peak = format_bytes(max((work.probe.peak_bytes for work in remaining if work.probe), default=0))
    if accelerator.device.type == "cuda":
        total = torch.cuda.get_device_properties(accelerator.device).total_memory
        return f"memory: at most {peak} of each GPU's {format_bytes(total)}"
    return f"memory: at most {peak} for each process; this machine has {format_bytes(available_bytes())} left"


def bad_image_lines(bad_images: Mapping[str, str]) -> Iterator[str]:
    """A line on the bad images that the probes met, if any; a run would replace them.

    Args:
        bad_images: reasons by name.
    """
    for name, reason in list(bad_images.items())[:1]:
        yield f"bad images among the few that were read: {len(bad_images)}, such as {name} ({reason})"


def written_lines(remaining: Sequence[RemainingWork], config: Config) -> Iterator[str]:
    """What a run would write, and where."""
    folder = Path(config.output)
    yield f"a run would write into {folder}, and this one has written nothing:"
    yield f"  {CONFIG_NAME}, {METRICS_NAME}, {SUMMARY_NAME}, {PER_CLASS_NAME}"
    unfinished = [work for work in remaining if work.probe]
    if unfinished:
        names = ", ".join(f"{work.spec.folder.name}/" for work in unfinished)
        every = config.runtime.checkpoint_interval(unfinished[0].spec.num_steps)
        until_then = f"; until then a checkpoint every {every:,} steps" if unfinished[0].spec.num_steps > every else ""
        yield f"  {names}: {MODEL_NAME}, {CARD_NAME}, {RESULT_NAME}{until_then}"
    for work in remaining:
        if work.probe is None:
            yield f"  {work.spec.folder.name}/ is finished and stays as it is"
        elif work.num_done:
            yield f"  {work.spec.folder.name}/ goes on after step {work.num_done:,}"
    if config.trackers:
        yield f"  {FOLDER_NAME}/: files of {', '.join(config.trackers)}"


def format_bytes(num_bytes: int) -> str:
    """Three digits in units of 10**6 or 10**9 bytes."""
    return f"{num_bytes / 1e9:,.3g} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.3g} MB"


def format_seconds(seconds: float) -> str:
    """The two largest units of a time; an estimate has no more to say."""
    for unit, length, smaller, smaller_length in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit} {seconds % length // smaller_length:.0f} {smaller}"
    return f"{seconds:.0f} s"
