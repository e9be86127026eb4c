"""Training without learning: a stage's true step on fresh weights, to see how fast it is."""

import time
from collections.abc import Iterator
from itertools import islice

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast

from cbd_fast.config.schema import Config
from cbd_fast.loading.loader import Batch
from cbd_fast.training.models import build_model
from cbd_fast.training.plan import ModelSpec, join_setup
from cbd_fast.training.train_step import TrainStep, make_train_step


def fresh_train_step(spec: ModelSpec, config: Config, accelerator: Accelerator) -> TrainStep:
    """What the engine makes of a spec, with teachers that have learned nothing: they cost the same."""
    backbone, num_classes = config.model.backbone, config.data.num_classes
    stage = join_setup(spec, config, [build_model(backbone, num_classes) for _ in range(spec.num_teachers)])
    return make_train_step(stage, config, accelerator)


def training_rate(train_step: TrainStep, batches: Iterator[Batch], seconds: float, num_warm_up: int = 1) -> float:
    """Images per second, of all processes together, of learning from batches as they come.

    Args:
        train_step: what learns.
        batches: without end; on all processes.
        seconds: for which to measure, after
        num_warm_up: batches.
    """
    for batch in islice(batches, num_warm_up):
        _learn(train_step, batch)
    num_images, began = 0, time.perf_counter()
    for batch in batches:
        _learn(train_step, batch)
        num_images += len(batch)
        if agreed(train_step.accelerator, time.perf_counter() - began > seconds):
            break
    return num_images * train_step.accelerator.num_processes / (time.perf_counter() - began)


def agreed(accelerator: Accelerator, is_enough: bool) -> bool:
    """What the main process says: one that stopped by its own clock would leave the others waiting."""
    if accelerator.num_processes == 1:
        return is_enough
    return bool(broadcast(torch.tensor(float(is_enough), device=accelerator.device)))


def _learn(train_step: TrainStep, batch: Batch) -> None:
    for _ in train_step.update(batch, train_step.optimizer.param_groups[0]["lr"]):
        pass
    if train_step.accelerator.device.type == "cuda":
        torch.cuda.synchronize(train_step.accelerator.device)
