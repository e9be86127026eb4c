"""Training throughput without learning: a model's true step on fresh weights, timed."""

import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast

from cbd_fast.config.schema import Config
from cbd_fast.loading.batch import Batch
from cbd_fast.training.finished import has_result
from cbd_fast.training.model_folder import read_model
from cbd_fast.training.models import build_model
from cbd_fast.training.plan import ModelSetup, ModelSpec, join_setup
from cbd_fast.training.train_step import TrainStep, make_train_step


def fresh_setup(spec: ModelSpec, config: Config) -> ModelSetup:
    """A model as its stage builds it; teachers that are still to be trained are untrained ones, which cost the same."""
    backbone, num_classes = config.model.backbone, config.data.num_classes
    teachers = [
        build_model(backbone, num_classes) if _is_to_be_trained(folder, spec) else read_model(folder)[0]
        for folder in spec.teachers
    ]
    return join_setup(spec, config, teachers)


def fresh_train_step(spec: ModelSpec, config: Config, accelerator: Accelerator) -> TrainStep:
    """The train step of ``fresh_setup``, as the engine makes it."""
    return make_train_step(fresh_setup(spec, config), config, accelerator)


def training_rate(train_step: TrainStep, batches: Iterator[Batch], seconds: float, num_warm_up: int = 1) -> float:
    """Training speed on batches as they come; to be called on all processes.

    Args:
        train_step: the step to be timed.
        batches: training batches without end.
        seconds: duration of the measurement.
        num_warm_up: batches before it.

    Returns:
        Images per second of all processes together.
    """
    for batch in islice(batches, num_warm_up):
        _run_step(train_step, batch)
    num_images, start_time = 0, time.perf_counter()
    for batch in batches:
        _run_step(train_step, batch)
        num_images += len(batch)
        if agreed(train_step.accelerator, time.perf_counter() - start_time > seconds):
            break
    return num_images * train_step.accelerator.num_processes / (time.perf_counter() - start_time)


def agreed(accelerator: Accelerator, is_time_up: bool) -> bool:
    """The main process's answer: a process that stopped by its own clock would leave the others waiting."""
    if accelerator.num_processes == 1:
        return is_time_up
    return bool(broadcast(torch.tensor(float(is_time_up), device=accelerator.device)))


def _is_to_be_trained(teacher: Path, spec: ModelSpec) -> bool:
    """Whether a teacher's folder is one of this run, where its result is written last, and not another run's."""
    return teacher.parent == spec.folder.parent and not has_result(teacher)


def _run_step(train_step: TrainStep, batch: Batch) -> None:
    for _ in train_step.update(batch, train_step.optimizer.param_groups[0]["lr"]):
        pass
    if train_step.accelerator.device.type == "cuda":
        torch.cuda.synchronize(train_step.accelerator.device)
