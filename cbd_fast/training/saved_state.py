"""What is saved of a model beside its tensors: how far it is, and what came out."""

from typing import Annotated, Any

from pydantic import Field, model_validator

from cbd_fast.settings import Settings
from cbd_fast.training.tensor_files import FileRecord

Count = Annotated[int, Field(ge=0, lt=1 << 62)]


class BestWeights(Settings):
    """The weights that were best on the validation split so far.

    Attributes:
        step: steps after which they were evaluated; 0 before the first evaluation.
        per_class_mean: their accuracy in percent.
    """

    step: int = Field(0, ge=0)
    per_class_mean: float = -1.0


class MeterState(Settings):
    """What was measured since the last line of the log, and what a line says of all steps before.

    Attributes:
        step: steps that are done.
        last_step: steps after which the last line was written.
        seconds: time since then.
        sums: sums over images, of each process, by name.
        num_images: images of each process.
        seconds_waited: time that each process waited for images.
        num_skipped: updates that fp16's loss scale has passed over, since the first step.
        bad_images: indices of the images that turned out bad, on any process, since the first step.
    """

    step: int = Field(ge=0)
    last_step: int = Field(ge=0)
    seconds: float = Field(ge=0)
    sums: dict[str, tuple[float, ...]]
    num_images: tuple[Count, ...]
    seconds_waited: tuple[float, ...]
    num_skipped: int = Field(0, ge=0)
    bad_images: tuple[Count, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> "MeterState":
        if any(len(values) != len(self.num_images) for values in (self.seconds_waited, *self.sums.values())):
            raise ValueError("the sums are of different numbers of processes")
        return self


class State(Settings):
    """``state.json`` of a checkpoint.

    Attributes:
        step: steps that are done.
        identity: everything that the weights depend on, by name.
        seconds: time that training has taken.
        evaluated_step: steps after which the model was evaluated last, or 0.
        files: of the checkpoint, by name.
        scaler: state of fp16's loss scale.
        best: the best weights so far, where they are selected.
        best_file: the file of the best weights.
        evaluated_step: steps after which the last evaluation in between was; a stop may have put one off.
        meter: what the next line of the log begins with.
    """

    step: int = Field(ge=0, lt=10**8)
    identity: dict[str, Any]
    seconds: float = Field(0.0, ge=0)
    evaluated_step: int = Field(0, ge=0)
    files: dict[str, FileRecord] = Field({})
    scaler: dict[str, float | int] | None = None
    best: BestWeights | None = None
    best_file: FileRecord | None = None
    meter: MeterState | None = None


class Result(Settings):
    """``result.json`` of a finished model.

    Attributes:
        identity: everything that the weights depend on, by name.
        metrics: of the test split, in percent.
        seconds: time that training has taken.
        counts: ``(3, num_classes)``, as ``Predictions.counts`` has them.
        selected: the weights that were selected on the validation split; None for the last ones.
        files: of the model's folder, by name.
    """

    identity: dict[str, Any]
    metrics: dict[str, float | None]
    seconds: float = Field(ge=0)
    counts: tuple[tuple[Count, ...], ...] = ()
    selected: BestWeights | None = None
    files: dict[str, FileRecord] = Field({})

    @model_validator(mode="after")
    def _check(self) -> "Result":
        if self.counts and (len(self.counts) != 3 or len({len(row) for row in self.counts}) > 1):
            raise ValueError("counts are not three rows of one number per class")
        return self
