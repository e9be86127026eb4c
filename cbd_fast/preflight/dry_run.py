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
from cbd_fast.preflight.probe import ProbeResult, measure
from cbd_fast.system import available_bytes
from cbd_fast.training.checkpoint import MODEL_NAME, RESULT_NAME, load_checkpoint, load_weights, read_state
from cbd_fast.training.context import RunContext
from cbd_fast.training.models import build_model
from cbd_fast.training.optim import make_optimizer
from cbd_fast.training.plan import ModelSpec, join_setup
from cbd_fast.training.run_dir import CONFIG_NAME, METRICS_NAME, PER_CLASS_NAME, SUMMARY_NAME, RunDir
from cbd_fast.training.selection import Best
from cbd_fast.training.trackers import FOLDER_NAME
from cbd_fast.ui.console import make_console

MAX_CHECKPOINTS = 2  # of the model in training: the old one goes when the new one is whole
MAX_BEST = 3  # best weights on the validation split: those of the checkpoint, of now, and new ones being written


class NullRunDir(RunDir):
    """RunDir of a run that writes nothing; only its bad images are remembered."""

    def __init__(self) -> None:
        super().__init__(Path(), is_main=False)
        self.bad_images: dict[str, str] = {}

    def bad_image(self, name: str, reason: str) -> None:
        self.bad_images[name] = reason


class Evaluations(NamedTuple):
    """What is evaluated of each model.

    Attributes:
        num_test: images of the test split, at the end.
        every: steps between two evaluations before; None without any.
        num_val: images of the validation split where it selects, on which all others are; otherwise 0.
    """

    num_test: int
    every: int | None = None
    num_val: int = 0


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A model and what is left to do of it.

    Attributes:
        spec: the model.
        num_done: steps that its checkpoint has done.
        measured: how its kind goes here; None if it is finished.
    """

    spec: ModelSpec
    num_done: int
    measured: ProbeResult | None

    def training_seconds(self, global_batch: int) -> float:
        """Until its last step."""
        if self.measured is None:
            return 0.0
        return (self.spec.num_steps - self.num_done) * global_batch / self.measured.rate

    def evaluation_seconds(self, evaluations: Evaluations) -> float:
        """Of its evaluations to come."""
        if self.measured is None:
            return 0.0
        num_test, every, num_val = evaluations
        num_before = max(0, (self.spec.num_steps - 1) // every - self.num_done // every) if every else 0
        return (num_before * (num_val or num_test) + num_val + num_test) / self.measured.evaluation_rate

    def disk_bytes(self, checkpoint_every: int, num_best: int = 0) -> tuple[int, int]:
        """What stays of it on the disk, and what its checkpoints and best weights take while it is trained."""
        if self.measured is None:
            return 0, 0
        num_checkpoints = min(MAX_CHECKPOINTS, (self.spec.num_steps - 1) // checkpoint_every)
        weights = self.measured.weight_bytes
        return weights, num_checkpoints * (weights + self.measured.optimizer_bytes) + num_best * weights


def rehearse(specs: Sequence[ModelSpec], context: RunContext, bad_images: Mapping[str, str], title: str) -> None:
    """Checks and measures what a run of these models needs, on all processes, and prints it on the main one.

    Args:
        specs: in the order in which they are trained.
        context: as for training, with records that write nothing.
        bad_images: where ``around`` puts places and reasons of those that turn up.
        title: the run in a line.

    Raises:
        InputError: the folder, a checkpoint, the memory or the disk is not fit for the run.
        RunError: too many images cannot be decoded.
    """
    config, accelerator = context.config, context.accelerator
    folder = Path(config.output)
    check_writable(folder)
    console = make_console() if accelerator.is_main_process else Console(quiet=True)
    planned = measured_plan(specs, context, console)
    num_best = MAX_BEST if context.val_loader else 0
    needed, free = disk_bytes(planned, config.runtime.checkpoint_every, num_best), disk_room(folder)
    if needed > free:
        raise InputError(
            f"output: {folder} needs up to {size(needed)} for models and checkpoints, but only {size(free)} "
            "are free there; choose another output or make room"
        )
    evaluations = Evaluations(
        num_test=len(context.test_loader.shards),
        every=context.evaluate_every,
        num_val=len(context.val_loader.shards) if context.val_loader else 0,
    )
    lines = [
        *summary_lines(planned, config, evaluations),
        memory_line(planned, accelerator),
        f"disk: at most {size(needed)} of {size(free)} that are free",
        *bad_image_lines(bad_images),
        *written_lines(planned, config),
    ]
    in_pipe = not console.is_terminal  # where lines stay whole
    console.print(title, highlight=False, markup=False, soft_wrap=in_pipe)
    console.print(table_of(planned, config, evaluations))
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=in_pipe)


def measured_plan(specs: Sequence[ModelSpec], context: RunContext, console: Console) -> list[Planned]:
    """Reads what there is of each model, and measures one of each kind that is not finished."""
    kinds: dict[tuple[str, int], ProbeResult] = {}
    planned = []
    for spec in specs:
        check_saved(spec, context.config)
        kind = (spec.stage, spec.num_teachers)
        if not spec.is_finished and kind not in kinds:
            with console.status(f"timing a few steps of {spec.name}"):
                kinds[kind] = measure(spec, context)
        state, measured = read_state(spec.folder), None if spec.is_finished else kinds[kind]
        planned.append(Planned(spec=spec, num_done=state["step"] if state else 0, measured=measured))
    return planned


def check_writable(folder: Path) -> None:
    """Refuses a folder that cannot be written, or made."""
    place = nearest(folder)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"output: {folder} cannot be written ({place} is no folder that you can write in)")


def check_saved(spec: ModelSpec, config: Config) -> None:
    """Reads a model's finished weights or its checkpoint, if there are any, as the run will.

    Raises:
        InputError: they are damaged.
    """
    if not (spec.is_finished or read_state(spec.folder)):
        return
    backbone, num_classes = config.model.backbone, config.data.num_classes
    model = join_setup(spec, config, [build_model(backbone, num_classes) for _ in range(spec.num_teachers)]).model
    if spec.is_finished:
        load_weights(spec.folder / MODEL_NAME, model)
    else:
        state = load_checkpoint(spec.folder, model, make_optimizer(model, config.optimization))
        if state and state.get("best"):
            Best(spec.folder, is_main=False, found=state["best"])


def disk_bytes(planned: Sequence[Planned], checkpoint_every: int, num_best: int = 0) -> int:
    """The most that a run adds on the disk: what stays of all models, and what one has while it is trained."""
    sizes = [model.disk_bytes(checkpoint_every, num_best) for model in planned]
    return sum(stays for stays, _ in sizes) + max((besides for _, besides in sizes), default=0)


def disk_room(folder: Path) -> int:
    """Bytes that are free where a folder is, or will be."""
    return shutil.disk_usage(nearest(folder)).free


def nearest(folder: Path) -> Path:
    """The folder itself, or the nearest above it that there is."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def table_of(planned: Sequence[Planned], config: Config, evaluations: Evaluations) -> Table:
    """A row for each model."""
    table = Table()
    table.add_column("model")
    for name in ("stage", "steps", "done", "images/s", "time left", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    for model in planned:
        spec, measured = model.spec, model.measured
        seconds = model.training_seconds(config.optimization.global_batch)
        seconds += model.evaluation_seconds(evaluations)
        done = "all" if measured is None else f"{model.num_done:,}"
        numbers = (
            ("-", "-", "-")
            if measured is None
            else (f"{measured.rate:,.0f}", roughly(seconds), size(measured.peak_bytes))
        )
        table.add_row(spec.name, spec.stage, f"{spec.num_steps:,}", done, *numbers)
    return table


def summary_lines(planned: Sequence[Planned], config: Config, evaluations: Evaluations) -> Iterator[str]:
    """The whole run's time, and the cached images."""
    training = sum(model.training_seconds(config.optimization.global_batch) for model in planned)
    evaluation = sum(model.evaluation_seconds(evaluations) for model in planned)
    yield f"time: about {roughly(training + evaluation)} in all, {roughly(evaluation)} of it for evaluation"
    kept = {model.spec.stage: model.measured.kept for model in planned if model.measured and model.measured.kept}
    for stage, images in kept.items():
        yield (
            f"decoded cache of the {stage}: {images.num_images:,} images, {size(images.num_bytes)} of "
            f"{size(images.room_bytes)} that {images.where} has left"
        )
    if kept:
        yield "the speed was measured without cached images, which can only make loading faster"


def memory_line(planned: Sequence[Planned], accelerator: Accelerator) -> str:
    """The most memory that a process takes, of what there is."""
    peak = size(max((model.measured.peak_bytes for model in planned if model.measured), default=0))
    if accelerator.device.type == "cuda":
        total = torch.cuda.get_device_properties(accelerator.device).total_memory
        return f"memory: at most {peak} of each GPU's {size(total)}"
    return f"memory: at most {peak} for each process; this machine has {size(available_bytes())} left"


def bad_image_lines(bad_images: Mapping[str, str]) -> Iterator[str]:
    """What turned up by the way; a run would pass over them."""
    for place, reason in list(bad_images.items())[:1]:
        yield f"bad images among the few that were read: {len(bad_images)}, such as {place} ({reason})"


def written_lines(planned: Sequence[Planned], config: Config) -> Iterator[str]:
    """What a run would write, and where."""
    every, folder = config.runtime.checkpoint_every, Path(config.output)
    yield f"a run would write into {folder}, and this one has written nothing:"
    yield f"  {CONFIG_NAME}, {METRICS_NAME}, {SUMMARY_NAME}, {PER_CLASS_NAME}"
    trained = [model for model in planned if model.measured]
    if trained:
        names = ", ".join(f"{model.spec.folder.name}/" for model in trained)
        until_then = f"; until then a checkpoint every {every:,} steps" if trained[0].spec.num_steps > every else ""
        yield f"  {names}: {MODEL_NAME} and {RESULT_NAME}{until_then}"
    for model in planned:
        if model.measured is None:
            yield f"  {model.spec.folder.name}/ is finished and stays as it is"
        elif model.num_done:
            yield f"  {model.spec.folder.name}/ goes on after step {model.num_done:,}"
    if config.trackers:
        yield f"  {FOLDER_NAME}/: files of {', '.join(config.trackers)}"


def size(num_bytes: int) -> str:
    """In units of 10**6 or 10**9 bytes, three digits."""
    return f"{num_bytes / 1e9:,.3g} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.3g} MB"


def roughly(seconds: float) -> str:
    """The two largest units of a time; an estimate has no more to say."""
    for unit, length, smaller, smaller_length in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit} {seconds % length // smaller_length:.0f} {smaller}"
    return f"{seconds:.0f} s"
