"""What a run is: typed settings, impossible ones refused."""

from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, model_validator

from cbd_fast.loading.augment import Augmentation
from cbd_fast.loading.counter_rng import hash64
from cbd_fast.settings import Settings, flattened

Sampling = Literal["instance", "class_balanced", "square_root", "progressive"]
# what does not change which student comes out, and so may differ when a run goes on
NOT_PART_OF_A_RUN = (
    "output",
    "stages",
    "checkpoint_selection",
    "trackers",
    "runtime",
)  # `select` is part of it as it turns out


def _word(value: Any) -> Any:
    """YAML reads a bare `no` as false; where the setting is a word, it is meant as one."""
    return "no" if value is False else value


class Data(Settings):
    """The images."""

    shards: str = Field(description="folder of shards, as tools/make_shards.py writes it")
    num_classes: int = Field(gt=1, description="classes of the shards; a check against training on the wrong ones")
    image_size: int = Field(224, gt=0, description="side of the model's input in pixels")
    augmentation: Augmentation = Field(Augmentation(), description="of training images, in both stages")


class Model(Settings):
    """The network of teachers and student."""

    backbone: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnet32", "small_convnet"] = (
        Field("resnet50", description="resnet32 is that of He et al. for CIFAR; small_convnet is for tiny images")
    )


class Optimization(Settings):
    """SGD with momentum and a cosine schedule, the same for every model of the run."""

    epochs: float | None = Field(
        None, gt=0, le=10**6, description="length of each model's training; either this or `steps`"
    )
    steps: int | None = Field(None, gt=0, description="length of each model's training; either this or `epochs`")
    global_batch: int = Field(128, gt=0, description="images per step, of all processes together")
    accumulation: int = Field(1, gt=0, description="parts into which each process cuts its batch to save memory")
    base_learning_rate: float = Field(0.1, gt=0, description="for a global batch of 256; scales linearly with it")
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD")
    weight_decay: float = Field(2.5e-4, ge=0, description="as torch's SGD has it, on every trainable parameter")

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

    seed: int = Field(1, ge=0, lt=2**63, description="of its weights and its order of images, besides the run's seed")
    color_jitter: float = Field(0.0, ge=0, le=1, description="1 for the paper's data-augmentation teachers")


class StageOne(Settings):
    """The teachers."""

    sampling: Sampling = Field("instance", description="of training images")
    teachers: tuple[Teacher, ...] = Field(
        (Teacher(),), strict=False, description="CBD: one; CBD-ENS: two standard and two with colour jitter"
    )

    @model_validator(mode="after")
    def _check(self) -> "StageOne":
        if len(set(self.teachers)) < len(self.teachers):
            raise ValueError("two teachers have the same seed and color_jitter and would be the same model")
        return self


class StageTwo(Settings):
    """The student."""

    sampling: Sampling = Field("class_balanced", description="of training images")
    seed: int = Field(0, ge=0, lt=2**63, description="of its weights and its order of images, besides the run's seed")
    alpha: float = Field(0.4, ge=0, le=1, description="weight of distillation; 1 - alpha is that of cross-entropy")
    beta: float = Field(100.0, ge=0, description="factor of the distillation loss")
    color_jitter: float = Field(0.0, ge=0, le=1, description="of the student's images; none in the paper")


class Runtime(Settings):
    """How a run is carried out; it changes what is learned only by rounding, and by what `select` can choose from."""

    decoder: Literal["auto", "dali", "torch"] = Field(
        "auto", description="auto: DALI if it is installed, else torchvision"
    )
    num_threads: int | None = Field(
        None,
        gt=0,
        description="of each process, for loading and, without a GPU, for computing; by default its part of the cores",
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
        0.01, ge=0, le=1, description="of the images of a split that may turn out bad; one alone never ends a run"
    )
    channels_last: bool = Field(True, description="memory layout of images and weights")
    compile: bool | None = Field(
        None,
        description="torch.compile model and teachers; by default where it pays: the teachers in runs of 500 steps or "
        "more, the model in those of 2,000 or more, on the CPU only in float32 and for images of up to 64 pixels",
    )
    teacher_precision: Annotated[Literal["auto", "no", "bf16", "fp16"], BeforeValidator(_word)] = Field(
        "auto", description="of the teachers' networks; auto: that of the run"
    )
    log_every: int = Field(50, gt=0, description="steps between two lines of the log")
    checkpoint_every: int = Field(1000, gt=0, description="steps between two checkpoints")
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


def _list(value: Any) -> Any:
    """A single word is meant as a list of it."""
    return [value] if isinstance(value, str) else value


class Config(Settings):
    """Everything that a run depends on."""

    output: str = Field(description="folder of the run")
    seed: int = Field(0, ge=0, lt=2**63, description="of the whole run")
    stages: Literal["teachers", "student", "all"] = Field(
        "all", description="teachers, student, or one after the other"
    )
    mixed_precision: Annotated[Literal["no", "bf16", "fp16"], BeforeValidator(_word)] = Field(
        "no", description="of the networks; the cosine and the losses are always float32"
    )
    checkpoint_selection: Literal["auto", "last", "best"] = Field(
        "auto",
        description="the weights that are reported: the last, or the best by per-class mean on the validation split; "
        "auto: the best if the shards have one",
    )
    trackers: Annotated[tuple[str, ...], BeforeValidator(_list)] = Field(
        (), strict=False, description="where the numbers of the log go besides, such as [tensorboard] or [wandb]"
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

    def to_yaml(self) -> str:
        """All settings, defaults included, as a file that can be run again."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

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
