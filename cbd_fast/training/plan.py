"""The two stages: what each hands to the engine. Neither is a loop of its own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cbd_fast.config.schema import Config, Teacher
from cbd_fast.errors import InputError
from cbd_fast.loading.augment import Augmentation
from cbd_fast.loading.counter_rng import hash64
from cbd_fast.shards.reader import ShardSet
from cbd_fast.training.checkpoint import MODEL_NAME, load_weights, read_result, read_state
from cbd_fast.training.losses import student_losses, teacher_losses
from cbd_fast.training.models import CosineModel, Output, Teachers, build_model
from cbd_fast.training.selection import selection_interval

Losses = Callable[[Output, Tensor, Tensor | None], dict[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One model to be trained.

    Attributes:
        name: ``teacher-1``, ..., ``student``; also its folder in the run.
        stage: ``one`` or ``two``.
        seed: of weights, order and augmentation.
        sampling: of training pictures.
        augmentation: of training pictures.
        num_steps: updates.
        num_teachers: whose features it follows.
        folder: where its files go.
        identity: what its weights depend on.
    """

    name: str
    stage: str
    seed: int
    sampling: str
    augmentation: Augmentation
    num_steps: int
    num_teachers: int
    folder: Path
    identity: dict[str, Any]

    @property
    def is_finished(self) -> bool:
        return read_result(self.folder) is not None


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What the engine needs to train one model: the model itself, its teachers if any, and its losses."""

    job: Job
    model: CosineModel
    teachers: Teachers | None
    losses: Losses


def plan_jobs(config: Config, shards: ShardSet) -> list[Job]:
    """All models of a run, in the order in which they are trained, whatever ``stages`` says."""
    num_steps = config.optimization.num_steps(len(shards))
    output, pictures = Path(config.output), {"pictures": shards.manifest.fingerprint}
    if interval := selection_interval(config, shards):
        pictures["select"] = f"best of every {interval} steps"
    teachers = config.stage_one.teachers
    jobs = [
        _teacher_job(config, number, teacher, num_steps, output / f"teacher-{number}", pictures)
        for number, teacher in enumerate(teachers, 1)
    ]
    student = Job(
        name="student",
        stage="two",
        seed=config.student_seed,
        sampling=config.stage_two.sampling,
        augmentation=config.data.augmentation.model_copy(update={"color_jitter": config.stage_two.color_jitter}),
        num_steps=num_steps,
        num_teachers=len(teachers),
        folder=output / "student",
        identity=config.identity(None) | pictures,
    )
    return [*jobs, student]


def wanted_jobs(jobs: list[Job], stages: str) -> list[Job]:
    """The models of the stages ``one``, ``two`` (with its teachers, which are finished) or ``both``.

    Raises:
        InputError: the run's folder holds models of other settings, or stage two alone lacks its teachers.
    """
    for job in jobs:
        if stages != "one" or job.stage == "one":
            _check_identity(job)
        if stages == "two" and job.stage == "one" and not job.is_finished:
            raise InputError(f"stages=two: {job.folder} holds no finished teacher; run stages=one or stages=both")
    return [job for job in jobs if stages != "one" or job.stage == "one"]


def finished_results(jobs: list[Job]) -> dict[str, dict[str, Any]]:
    """Results by name of the models that are finished and of these settings."""
    results = {job.name: read_result(job.folder) for job in jobs}
    identities = {job.name: job.identity for job in jobs}
    return {name: result for name, result in results.items() if result and result["identity"] == identities[name]}


def build_stage(job: Job, config: Config) -> Stage:
    """Builds a model with fresh weights as its stage wants it, and loads its teachers."""
    backbone, num_classes = config.model.backbone, config.data.num_classes
    folders = [job.folder.parent / f"teacher-{number}" for number in range(1, job.num_teachers + 1)]
    return join_stage(job, config, [load_model(folder, backbone, num_classes) for folder in folders])


def join_stage(job: Job, config: Config, teachers: Sequence[CosineModel]) -> Stage:
    """Builds a model with fresh weights that follows these teachers, as many as its job has."""
    torch.manual_seed(int(hash64(job.seed, 0)[0] >> 1))  # building the teachers used up random numbers
    backbone, num_classes = config.model.backbone, config.data.num_classes
    if not teachers:
        model = build_model(backbone, num_classes)
        return Stage(
            job=job,
            model=model,
            teachers=None,
            losses=lambda output, labels, _: teacher_losses(output, labels),
        )
    joined = Teachers(teachers)
    alpha, beta = config.stage_two.alpha, config.stage_two.beta

    def losses(output: Output, labels: Tensor, target: Tensor | None) -> dict[str, Tensor]:
        assert target is not None
        return student_losses(output, labels, target, alpha=alpha, beta=beta)

    model = build_model(backbone, num_classes, target_dim=joined.feature_dim)
    return Stage(job=job, model=model, teachers=joined, losses=losses)


def load_model(folder: Path, backbone: str, num_classes: int, target_dim: int | None = None) -> CosineModel:
    """A finished model of a run."""
    model = build_model(backbone, num_classes, target_dim)
    load_weights(folder / MODEL_NAME, model)
    return model


def _teacher_job(
    config: Config, number: int, teacher: Teacher, num_steps: int, folder: Path, pictures: dict[str, str]
) -> Job:
    return Job(
        name=f"teacher-{number}",
        stage="one",
        seed=config.teacher_seed(teacher),
        sampling=config.stage_one.sampling,
        augmentation=config.data.augmentation.model_copy(update={"color_jitter": teacher.color_jitter}),
        num_steps=num_steps,
        num_teachers=0,
        folder=folder,
        identity=config.identity(teacher) | pictures,
    )


def _check_identity(job: Job) -> None:
    """A model that was begun or finished goes on only with the settings that it began with."""
    found = read_result(job.folder) or read_state(job.folder)
    if found is None:
        return
    before = found["identity"]
    changed = [
        f"{name} was {before.get(name)!r}, now {job.identity.get(name)!r}"
        for name in sorted(before.keys() | job.identity.keys())
        if before.get(name) != job.identity.get(name)
    ]
    if changed:
        raise InputError(
            f"{job.folder} was trained with other settings ({'; '.join(changed)}); choose another output, or remove "
            "that folder to train it again"
        )
