"""What a run trains: its models in their order, and what the one loop is given for each."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cbd_fast.config.schema import Config
from cbd_fast.config.sections import Teacher
from cbd_fast.errors import InputError
from cbd_fast.files import file_sha256
from cbd_fast.loading.augment import Augmentation
from cbd_fast.loading.counter_rng import hash64
from cbd_fast.shards.reader import ShardReader
from cbd_fast.training.checkpoint import MODEL_NAME, read_state
from cbd_fast.training.finished import has_result, read_finished
from cbd_fast.training.losses import Objective, as_class_counts
from cbd_fast.training.model_folder import check_weights, read_model, read_model_card
from cbd_fast.training.models import CosineModel, Teachers, build_model
from cbd_fast.training.saved_state import Result, State
from cbd_fast.training.selection import selection_interval


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One model to be trained.

    Attributes:
        name: ``teacher-1``, ..., ``student``; also its folder in the run.
        stage: ``teachers`` or ``student``.
        seed: seed of its weights, its order of images and their augmentation.
        sampling: policy by which training images are drawn.
        augmentation: what is done to training images.
        num_steps: number of updates.
        teachers: folders of the finished models whose features it follows.
        class_counts: training images of each class.
        folder: where its files go.
        identity: everything that its weights depend on, by name.
    """

    name: str
    stage: str
    seed: int
    sampling: str
    augmentation: Augmentation
    num_steps: int
    teachers: tuple[Path, ...]
    class_counts: tuple[int, ...]
    folder: Path
    identity: dict[str, Any]

    @property
    def num_teachers(self) -> int:
        """Models whose features it follows."""
        return len(self.teachers)

    @property
    def is_finished(self) -> bool:
        """Whether its folder holds its result."""
        return has_result(self.folder)


@dataclass(frozen=True, kw_only=True)
class ModelSetup:
    """What the engine needs to train one model: the model itself, its teachers if any, and what is lowered."""

    spec: ModelSpec
    model: CosineModel
    teachers: Teachers | None
    objective: Objective


def plan_models(config: Config, shards: ShardReader) -> list[ModelSpec]:
    """All models that a run trains, in their order, whatever ``stages`` says.

    Raises:
        InputError: a teacher of another run is missing, or does not go with this one.
    """
    output, identity = Path(config.output), {"images": shards.manifest.fingerprint}
    if interval := selection_interval(config, shards):
        identity["checkpoint_selection"] = f"best of every {interval} steps"
    common: dict[str, Any] = {
        "num_steps": config.optimization.num_steps(len(shards)),
        "class_counts": tuple(shards.record.class_counts),
    }
    specs, folders, teachers = [], [], []
    for number, teacher in enumerate(config.stage_one.teachers, 1):
        if teacher.path is not None:
            folders.append(Path(teacher.path))
            teachers.append({"sha256": _check_teacher(folders[-1], config)})
            continue
        folders.append(output / f"teacher-{number}")
        teachers.append(teacher.model_dump(mode="json"))
        specs.append(_teacher_spec(config, teacher, folders[-1], identity, common))
    student = ModelSpec(
        name="student",
        stage="student",
        seed=config.student_seed,
        sampling=config.stage_two.sampling,
        augmentation=config.data.augmentation.model_copy(update={"color_jitter": config.stage_two.color_jitter}),
        teachers=tuple(folders),
        folder=output / "student",
        identity=config.identity(None) | identity | {"stage_one.teachers": teachers},
        **common,
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
    """Results by name of the models that are finished and of these settings, as ``result.json`` has them."""
    results = {spec.name: (spec, read_finished(spec.folder)) for spec in specs}
    return {
        name: result.model_dump(mode="json")
        for name, (spec, result) in results.items()
        if result and not _changes(result.identity, spec.identity)
    }


def build_setup(spec: ModelSpec, config: Config) -> ModelSetup:
    """A model with fresh weights as its stage wants it, with its teachers loaded."""
    return join_setup(spec, config, [read_model(folder)[0] for folder in spec.teachers])


def join_setup(spec: ModelSpec, config: Config, teachers: Sequence[CosineModel]) -> ModelSetup:
    """A model with fresh weights that follows these teachers, as many as its spec has."""
    torch.manual_seed(int(hash64(spec.seed, 0)[0] >> 1))  # building the teachers used up random numbers
    followed = Teachers(teachers) if teachers else None
    target_dim = followed.feature_dim if followed else None
    model = build_model(config.model.backbone, config.data.num_classes, target_dim)
    stage_two = config.stage_two
    stage = stage_two if spec.stage == "student" else config.stage_one
    objective = Objective(
        classification=stage.loss,
        options=stage.loss_options,
        distillation=stage_two.distillation if followed else None,
        alpha=stage_two.alpha,
        beta=stage_two.beta,
        class_counts=as_class_counts(spec.class_counts),
    )
    return ModelSetup(spec=spec, model=model, teachers=followed, objective=objective)


def _teacher_spec(
    config: Config, teacher: Teacher, folder: Path, identity: dict[str, Any], common: dict[str, Any]
) -> ModelSpec:
    return ModelSpec(
        name=folder.name,
        stage="teachers",
        seed=config.teacher_seed(teacher),
        sampling=config.stage_one.sampling,
        augmentation=config.data.augmentation.model_copy(update={"color_jitter": teacher.color_jitter}),
        teachers=(),
        folder=folder,
        identity=config.identity(teacher) | identity,
        **common,
    )


def _check_teacher(folder: Path, config: Config) -> str:
    """The sha256 of the weights of a finished model of another run, which must see images as this run makes them."""
    card = read_model_card(folder)
    check_weights(folder, card)
    ours = config.data.augmentation
    for name in ("mean", "std"):
        if getattr(card.preprocessing, name) != getattr(ours, name):
            raise InputError(
                f"stage_one.teachers: {folder} was trained with data.augmentation.{name} "
                f"{getattr(card.preprocessing, name)}, and this run has {getattr(ours, name)}; its features would be "
                "of other colours"
            )
    return card.weights.sha256 if card.weights else file_sha256(folder / MODEL_NAME)


def _check_identity(spec: ModelSpec) -> None:
    """A model that was begun or finished goes on only if it is whole, and with the settings that it began with."""
    saved = read_finished(spec.folder, reads_all=True) or read_state(spec.folder)
    if saved is not None and "images" not in saved.identity:
        raise InputError(
            f"{spec.folder} was trained by cbd_fast 0.1, whose models this version cannot use; choose another output, "
            "or remove that folder to train it again"
        )
    too_much = saved.step > spec.num_steps if isinstance(saved, State) else _is_of_other_classes(saved, spec)
    if too_much:
        raise InputError(
            f"{spec.folder} holds what is not of this run: more steps than {spec.num_steps}, or other classes; choose "
            "another output, or remove that folder to train it again"
        )
    if saved is not None and (changed := _changes(saved.identity, spec.identity)):
        raise InputError(
            f"{spec.folder} was trained with other settings ({'; '.join(changed)}); choose another output, or remove "
            "that folder to train it again"
        )


def _is_of_other_classes(result: Result | None, spec: ModelSpec) -> bool:
    return result is not None and any(len(row) != len(spec.class_counts) for row in result.counts)


def _changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two identities, in words.

    What was no setting yet in the version of cbd_fast that began the model counts as having had today's default.
    """
    defaults = _default_identity()
    before = {name: defaults[name] for name in now if name in defaults} | before
    return [
        f"{name} was {before.get(name)!r}, now {now.get(name)!r}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]


def _default_identity() -> dict[str, Any]:
    data = {"shards": "", "num_classes": 2}
    return Config.model_validate({"output": "", "data": data, "optimization": {"steps": 1}}).identity(None)
