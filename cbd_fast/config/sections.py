"""The sections of a run's settings."""

import inspect
import os
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from cbd_fast.config.names import NameIn
from cbd_fast.files import expanded
from cbd_fast.loading.augment import Augmentation
from cbd_fast.registry import BACKBONES, LOSSES, SAMPLING
from cbd_fast.settings import Settings


def as_word(value: Any) -> Any:
    """YAML reads a bare `no` as false; where the setting is a word, it is meant as one."""
    return "no" if value is False else value


def _text_of_path(value: Any) -> Any:
    """A path with the home folder and environment variables in place of ``~`` and ``${NAME}``."""
    return expanded(os.fspath(value)) if isinstance(value, str | os.PathLike) else value


GIVEN_TO_LOSSES = ("output", "labels", "target", "class_counts", "progress")


def _check_loss(loss: str, options: dict[str, float]) -> None:
    """Refuses a loss that needs more than labels, and options that it does not take."""
    parameters = inspect.signature(LOSSES[loss]).parameters
    if "target" in parameters and parameters["target"].default is inspect.Parameter.empty:
        raise ValueError(f"loss {loss}: needs the teachers' features, so it can only be stage_two.distillation")
    defaults = {name for name, parameter in parameters.items() if parameter.default is not inspect.Parameter.empty}
    known = sorted(defaults - set(GIVEN_TO_LOSSES))
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(
            f"loss_options {unknown[0]!r}: {loss} has {'no such option' if known else 'no options'}"
            + (f", only {', '.join(known)}" if known else "")
        )


MAX_CHECKPOINT_INTERVAL = 1000  # steps

PathText = Annotated[str, BeforeValidator(_text_of_path)]
Precision = Literal["no", "bf16", "fp16"]
Sampling = Annotated[str, NameIn(SAMPLING)]
Loss = Annotated[str, NameIn(LOSSES)]


class Data(Settings):
    """The images."""

    shards: PathText = Field(description="folder of shards, as `cbd-fast shards` writes it")
    num_classes: int = Field(gt=1, description="classes of the shards; a check against training on the wrong ones")
    image_size: int = Field(224, gt=0, description="side of the model's input in pixels")
    augmentation: Augmentation = Field(
        Augmentation(), description="how training images become the input, in both stages"
    )


class Model(Settings):
    """The network of teachers and student."""

    backbone: Annotated[str, NameIn(BACKBONES)] = Field(
        "resnet50", description="network of every model of the run, without its classifier"
    )


class Optimization(Settings):
    """SGD with momentum and a cosine schedule, the same for every model of the run."""

    epochs: float | None = Field(
        None, gt=0, le=10**6, description="length of each model's training; either this or `steps`"
    )
    steps: int | None = Field(None, gt=0, description="length of each model's training; either this or `epochs`")
    global_batch: int = Field(128, gt=0, description="images per step, of all processes together")
    accumulation: int = Field(1, gt=0, description="parts into which each process cuts its batch to save memory")
    base_learning_rate: float = Field(
        0.1, gt=0, description="learning rate of a global batch of 256; scales linearly with it"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    weight_decay: float = Field(2.5e-4, ge=0, description="weight decay of torch's SGD, on every trainable parameter")

    @model_validator(mode="after")
    def _check(self) -> "Optimization":
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("set either `epochs` or `steps`, and not both")
        return self

    @property
    def learning_rate(self) -> float:
        """The highest learning rate, at the first step."""
        return self.base_learning_rate * self.global_batch / 256

    def num_steps(self, num_images: int) -> int:
        """Steps of each model's training on that many images."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, round(self.epochs * num_images / self.global_batch))


class Teacher(Settings):
    """One teacher of stage one."""

    seed: int = Field(1, ge=0, lt=2**63, description="seed of its weights and its order of images, besides the run's")
    color_jitter: float = Field(
        0.0, ge=0, le=1, description="strength of colour jitter; 1 for the paper's data-augmentation teachers"
    )
    path: Annotated[str | None, BeforeValidator(_text_of_path)] = Field(
        None, description="folder of a finished model of any run, backbone and width, which is used as it is"
    )

    @model_validator(mode="after")
    def _check(self) -> "Teacher":
        if self.path is not None and (self.seed, self.color_jitter) != (1, 0.0):
            raise ValueError(f"path {self.path}: a model that is finished takes no seed or color_jitter")
        return self


class StageOne(Settings):
    """The teachers."""

    sampling: Sampling = Field("instance", description="policy by which training images are drawn")
    loss: Loss = Field("cross_entropy", description="loss on the labels")
    loss_options: dict[str, float] = Field(
        {}, description="options of the loss, such as {tau: 1.5} of logit_adjustment"
    )
    teachers: tuple[Teacher, ...] = Field(
        (Teacher(),), strict=False, description="CBD: one; CBD-ENS: two standard and two with colour jitter"
    )

    @model_validator(mode="after")
    def _check(self) -> "StageOne":
        if len(set(self.teachers)) < len(self.teachers):
            raise ValueError("two teachers have the same seed and color_jitter and would be the same model")
        _check_loss(self.loss, self.loss_options)
        return self


class StageTwo(Settings):
    """The student."""

    sampling: Sampling = Field("class_balanced", description="policy by which training images are drawn")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of its weights and its order of images, besides the run's")
    loss: Loss = Field("cross_entropy", description="loss on the labels")
    loss_options: dict[str, float] = Field(
        {}, description="options of the loss, such as {tau: 1.5} of logit_adjustment"
    )
    distillation: Loss = Field("cosine_distance", description="loss on the features, given the teachers'")
    alpha: float = Field(0.4, ge=0, le=1, description="weight of distillation; 1 - alpha is that of the loss")
    beta: float = Field(100.0, ge=0, description="factor of the distillation loss")
    color_jitter: float = Field(
        0.0, ge=0, le=1, description="strength of colour jitter of the student's images; none in the paper"
    )

    @model_validator(mode="after")
    def _check(self) -> "StageTwo":
        _check_loss(self.loss, self.loss_options)
        return self


class Runtime(Settings):
    """How a run is carried out; it changes what is learned by rounding alone, and which weights can be selected."""

    decoder: Literal["auto", "dali", "torch"] = Field(
        "auto", description="auto: DALI if it is installed, else torchvision"
    )
    num_threads: int | None = Field(
        None,
        gt=0,
        description="threads of each process for loading and, without a GPU, computing; by default its cores",
    )
    prefetch: int = Field(2, gt=0, description="batches that are prepared ahead of time")
    cache: float | None = Field(
        None,
        ge=0,
        le=1,
        description="fraction of the training images to keep decoded in memory, the most drawn per byte",
    )
    cache_gb: float | None = Field(
        None,
        ge=0,
        description="the same as a limit of memory per machine, in 10**9 bytes; either this or `cache`",
    )
    cache_on_gpu: bool = Field(False, description="keep them in each process's GPU memory; needs DALI on a GPU")
    max_bad_fraction: float = Field(
        0.01, ge=0, le=1, description="fraction of a split's images that may turn out bad; one alone never ends a run"
    )
    channels_last: bool = Field(True, description="memory layout of images and weights")
    compile: bool | None = Field(
        None,
        description="torch.compile model and teachers; by default where it pays: the teachers in runs of 500 steps or "
        "more, the model in those of 2,000 or more, on the CPU only in float32 and for images of up to 64 pixels",
    )
    teacher_precision: Annotated[Literal["auto", "no", "bf16", "fp16"], BeforeValidator(as_word)] = Field(
        "auto", description="precision of the teachers' networks; auto: that of the run"
    )
    log_every: int = Field(50, gt=0, description="steps between two lines of the log")
    checkpoint_every: int | None = Field(
        None, gt=0, description="steps between two checkpoints; by default a tenth of the training, 1000 at most"
    )
    checkpoint_minutes: float = Field(10.0, gt=0, description="minutes after which there is a checkpoint all the same")
    keep_checkpoints: int = Field(
        2, gt=0, description="checkpoints that are kept of a model in training, in case that the newest is damaged"
    )
    evaluate_every: int | None = Field(
        None,
        gt=0,
        description="steps between two evaluations; by default at the end only, or every epoch to select the best",
    )
    record_batches: bool = Field(False, description="write every batch's images, boxes and colours, for checking")

    @model_validator(mode="after")
    def _check(self) -> "Runtime":
        if self.cache is not None and self.cache_gb is not None:
            raise ValueError("set either `cache` or `cache_gb`, and not both")
        return self

    def checkpoint_interval(self, num_steps: int) -> int:
        """Steps between two checkpoints in a training of ``num_steps``."""
        return self.checkpoint_every or min(MAX_CHECKPOINT_INTERVAL, -(-num_steps // 10))
