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
from cbd_fast.shards.reader import ShardReader
from cbd_fast.training.checkpoint import MODEL_NAME, load_weights, read_result, read_state
from cbd_fast.training.losses import student_losses, teacher_losses
from cbd_fast.training.models import CosineModel, Output, Teachers, build_model
from cbd_fast.training.selection import selection_interval

Losses = Callable[[Output, Tensor, Tensor | None], dict[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One model to be trained.

    Attributes:
        name: ``teacher-1``, ..., ``student``; also its folder in the run.
        stage: ``one`` or ``two``.
        seed: of weights, order and augmentation.
        sampling: of training images.
        augmentation: of training images.
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
class ModelSetup:
    """What the engine needs to train one model: the model itself, its teachers if any, and its losses."""

    spec: ModelSpec
    model: CosineModel
    teachers: Teachers | None
    losses: Losses


def plan_models(config: Config, shards: ShardReader) -> list[ModelSpec]:
    """All models of a run, in the order in which they are trained, whatever ``stages`` says."""
    num_steps = config.optimization.num_steps(len(shards))
    output, images = Path(config.output), {"images": shards.manifest.fingerprint}
    if interval := selection_interval(config, shards):
        images["checkpoint_selection"] = f"best of every {interval} steps"
    teachers = config.stage_one.teachers
    specs = [
        _teacher_spec(config, number, teacher, num_steps, output / f"teacher-{number}", images)
        for number, teacher in enumerate(teachers, 1)
    ]
    student = ModelSpec(
        name="student",
        stage="student",
        seed=config.student_seed,
        sampling=config.stage_two.sampling,
        augmentation=config.data.augmentation.model_copy(update={"color_jitter": config.stage_two.color_jitter}),
        num_steps=num_steps,
        num_teachers=len(teachers),
        folder=output / "student",
        identity=config.identity(None) | images,
    )
    return [*specs, student]


def models_to_train(specs: list[ModelSpec], stages: str) -> list[ModelSpec]:
    """The models of the stages ``teachers``, ``student`` (with its teachers, which are finished) or ``all``.

    Raises:
        InputError: the run's folder holds models of other settings, or stage two alone lacks its teachers.
    """
    for spec in specs:
        if stages != "teachers" or spec.stage == "teachers":
            _check_identity(spec)
        if stages == "student" and spec.stage == "teachers" and not spec.is_finished:
            raise InputError(
                f"stages=student: {spec.folder} holds no finished teacher; run stages=teachers or stages=all"
            )
    return [spec for spec in specs if stages != "teachers" or spec.stage == "teachers"]


def finished_results(specs: list[ModelSpec]) -> dict[str, dict[str, Any]]:
    """Results by name of the models that are finished and of these settings."""
    results = {spec.name: read_result(spec.folder) for spec in specs}
    identities = {spec.name: spec.identity for spec in specs}
    return {name: result for name, result in results.items() if result and result["identity"] == identities[name]}


def build_setup(spec: ModelSpec, config: Config) -> ModelSetup:
    """Builds a model with fresh weights as its stage wants it, and loads its teachers."""
    backbone, num_classes = config.model.backbone, config.data.num_classes
    folders = [spec.folder.parent / f"teacher-{number}" for number in range(1, spec.num_teachers + 1)]
    return join_setup(spec, config, [load_model(folder, backbone, num_classes) for folder in folders])


def join_setup(spec: ModelSpec, config: Config, teachers: Sequence[CosineModel]) -> ModelSetup:
    """Builds a model with fresh weights that follows these teachers, as many as its spec has."""
    torch.manual_seed(int(hash64(spec.seed, 0)[0] >> 1))  # building the teachers used up random numbers
    backbone, num_classes = config.model.backbone, config.data.num_classes
    if not teachers:
        model = build_model(backbone, num_classes)
        return ModelSetup(
            spec=spec,
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
    return ModelSetup(spec=spec, model=model, teachers=joined, losses=losses)


def load_model(folder: Path, backbone: str, num_classes: int, target_dim: int | None = None) -> CosineModel:
    """A finished model of a run."""
    model = build_model(backbone, num_classes, target_dim)
    load_weights(folder / MODEL_NAME, model)
    return model


def _teacher_spec(
    config: Config, number: int, teacher: Teacher, num_steps: int, folder: Path, images: dict[str, str]
) -> ModelSpec:
    return ModelSpec(
        name=f"teacher-{number}",
        stage="teachers",
        seed=config.teacher_seed(teacher),
        sampling=config.stage_one.sampling,
        augmentation=config.data.augmentation.model_copy(update={"color_jitter": teacher.color_jitter}),
        num_steps=num_steps,
        num_teachers=0,
        folder=folder,
        identity=config.identity(teacher) | images,
    )


def _check_identity(spec: ModelSpec) -> None:
    """A model that was begun or finished goes on only with the settings that it began with."""
    found = read_result(spec.folder) or read_state(spec.folder)
    if found is None:
        return
    before = found["identity"]
    changed = [
        f"{name} was {before.get(name)!r}, now {spec.identity.get(name)!r}"
        for name in sorted(before.keys() | spec.identity.keys())
        if before.get(name) != spec.identity.get(name)
    ]
    if changed:
        raise InputError(
            f"{spec.folder} was trained with other settings ({'; '.join(changed)}); choose another output, or remove "
            "that folder to train it again"
        )
