"""What a run is: typed settings, impossible ones refused."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from cbd_fast.config.file import load_settings
from cbd_fast.config.names import NameIn
from cbd_fast.config.sections import (
    Data,
    Model,
    Optimization,
    PathText,
    Precision,
    Runtime,
    StageOne,
    StageTwo,
    Teacher,
    as_word,
)
from cbd_fast.config.yaml_file import dump_yaml
from cbd_fast.loading.counter_rng import hash64
from cbd_fast.registry import METRICS
from cbd_fast.settings import Settings, flattened

# What does not change which weights come out, and so may differ when a run goes on. (What checkpoint_selection comes to
# with these shards does, and is added to a model's identity.)
NOT_PART_OF_A_RUN = ("output", "stages", "checkpoint_selection", "metrics", "trackers", "runtime")


def _list(value: Any) -> Any:
    """A single word is meant as a list of it."""
    return [value] if isinstance(value, str) else value


class Config(Settings):
    """Everything that a run depends on."""

    output: PathText = Field(description="folder of the run")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the whole run")
    stages: Literal["teachers", "student", "all"] = Field(
        "all", description="teachers, student, or one after the other"
    )
    mixed_precision: Annotated[Precision, BeforeValidator(as_word)] = Field(
        "no", description="precision of the networks; the cosine and the losses are always float32"
    )
    checkpoint_selection: Literal["auto", "last", "best"] = Field(
        "auto",
        description="the weights that are reported: the last, or the best by per-class mean on the validation split; "
        "auto: the best if the shards have one",
    )
    metrics: tuple[Annotated[str, NameIn(METRICS)], ...] = Field(
        ("top1", "top5", "per_class_mean", "many", "medium", "few"),
        strict=False,
        description="metrics of every evaluation",
    )
    trackers: Annotated[tuple[str, ...], BeforeValidator(_list)] = Field(
        (),
        strict=False,
        description="experiment trackers that get the log's numbers too, such as [tensorboard] or [wandb]",
    )
    data: Data
    model: Model = Model()
    optimization: Optimization
    stage_one: StageOne = StageOne()
    stage_two: StageTwo = StageTwo()
    runtime: Runtime = Runtime()

    @model_validator(mode="after")
    def _check(self) -> "Config":
        if self.optimization.global_batch % self.optimization.accumulation:
            raise ValueError(
                f"optimization.accumulation {self.optimization.accumulation} must divide "
                f"optimization.global_batch {self.optimization.global_batch}"
            )
        if not self.stage_one.teachers and self.stage_two.alpha > 0:
            raise ValueError("stage_one.teachers is empty: distillation needs a teacher (or stage_two.alpha 0)")
        if self.data.augmentation.crop == "center":
            raise ValueError("data.augmentation.crop center is for testing: every epoch would be the same images")
        if self.data.augmentation.color_jitter:
            raise ValueError(
                "data.augmentation.color_jitter is each model's own: set it in stage_one.teachers or stage_two"
            )
        if self.data.augmentation.allow_padding and self.data.augmentation.padding >= self.data.image_size:
            raise ValueError(
                f"data.augmentation.padding {self.data.augmentation.padding} must be below "
                f"data.image_size {self.data.image_size}, or nothing of an image is left"
            )
        return self

    @classmethod
    def from_file(cls, path: str | Path, overrides: Sequence[str] = ()) -> "Config":
        """Settings of a run from a YAML file.

        Args:
            path: the file.
            overrides: ``section.name=value`` with the value in YAML, each replacing a setting of the file.

        Raises:
            InputError: the file cannot be read, or a setting is unknown, of the wrong type or impossible.
        """
        return load_settings(cls, Path(path), overrides)

    def to_yaml(self) -> str:
        """All settings, defaults included, as a file that can be run again."""
        return dump_yaml(self.model_dump(mode="json"))

    def teacher_seed(self, teacher: Teacher) -> int:
        """Seed of a teacher's weights and images; never that of the student."""
        return _seed(self.seed, 1, teacher.seed)

    @property
    def student_seed(self) -> int:
        """Seed of the student's weights and images."""
        return _seed(self.seed, 2, self.stage_two.seed)

    def identity(self, teacher: Teacher | None) -> dict[str, Any]:
        """The settings that a model's weights depend on, by dotted name.

        Args:
            teacher: which teacher; None for the student, which depends on all of them.
        """
        settings = self.model_dump(mode="json", exclude=set(NOT_PART_OF_A_RUN))
        del settings["data"]["shards"]  # the same images may lie elsewhere; their fingerprint is checked
        del settings["optimization"]["accumulation"]  # like the number of processes: how, not what
        if teacher is not None:
            del settings["stage_two"]
            settings["stage_one"]["teachers"] = [teacher.model_dump(mode="json")]
        return dict(flattened(settings))


def _seed(*keys: int) -> int:
    return int(hash64(*keys)[0] >> 1)  # 63 bits: torch and NumPy take no more from a signed integer
