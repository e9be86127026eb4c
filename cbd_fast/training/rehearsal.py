"""Training without learning: a stage's true step on fresh weights, to see how fast it is."""

import time

import torch
from accelerate import Accelerator
from torch import Tensor

from cbd_fast.config import Config
from cbd_fast.training.learner import Learner, make_learner
from cbd_fast.training.models import build_model
from cbd_fast.training.stages import Job, join_stage


def rehearsed_learner(job: Job, config: Config, accelerator: Accelerator) -> Learner:
    """What the engine makes of a job, with teachers that have learned nothing: they cost the same."""
    backbone, num_classes = config.model.backbone, config.data.num_classes
    stage = join_stage(job, config, [build_model(backbone, num_classes) for _ in range(job.num_teachers)])
    return make_learner(stage, config, accelerator)


def training_rate(learner: Learner, images: Tensor, labels: Tensor, seconds: float) -> float:
    """Pictures per second of steps on one batch that is there already, after one to warm up."""
    learner.learn(images, labels)
    _wait(learner)
    num_steps, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        learner.learn(images, labels)
        _wait(learner)
        num_steps += 1
    return num_steps * len(labels) / (time.perf_counter() - began)


def _wait(learner: Learner) -> None:
    if learner.accelerator.device.type == "cuda":
        torch.cuda.synchronize(learner.accelerator.device)
