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
from cbd_fast.training.plan import Job, join_stage
from cbd_fast.training.train_step import Learner, make_learner


def rehearsed_learner(job: Job, config: Config, accelerator: Accelerator) -> Learner:
    """What the engine makes of a job, with teachers that have learned nothing: they cost the same."""
    backbone, num_classes = config.model.backbone, config.data.num_classes
    stage = join_stage(job, config, [build_model(backbone, num_classes) for _ in range(job.num_teachers)])
    return make_learner(stage, config, accelerator)


def training_rate(learner: Learner, batches: Iterator[Batch], seconds: float, num_warm_up: int = 1) -> float:
    """Pictures per second, of all processes together, of learning from batches as they come.

    Args:
        learner: what learns.
        batches: without end; on all processes.
        seconds: for which to measure, after
        num_warm_up: batches.
    """
    for batch in islice(batches, num_warm_up):
        _learn(learner, batch)
    num_pictures, began = 0, time.perf_counter()
    for batch in batches:
        _learn(learner, batch)
        num_pictures += len(batch)
        if agreed(learner.accelerator, time.perf_counter() - began > seconds):
            break
    return num_pictures * learner.accelerator.num_processes / (time.perf_counter() - began)


def agreed(accelerator: Accelerator, is_enough: bool) -> bool:
    """What the main process says: one that stopped by its own clock would leave the others waiting."""
    if accelerator.num_processes == 1:
        return is_enough
    return bool(broadcast(torch.tensor(float(is_enough), device=accelerator.device)))


def _learn(learner: Learner, batch: Batch) -> None:
    for _ in learner.update(batch, learner.optimizer.param_groups[0]["lr"]):
        pass
    if learner.accelerator.device.type == "cuda":
        torch.cuda.synchronize(learner.accelerator.device)
