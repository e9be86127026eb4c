"""Which weights of a model are reported: the last, or the best on the validation split. Never by the test split."""

from pathlib import Path

from torch import nn

from cbd_fast.config.schema import Config
from cbd_fast.errors import InputError
from cbd_fast.shards.reader import ShardReader
from cbd_fast.training.checkpoint import BEST_NAME, best_files, best_steps, save_weights
from cbd_fast.training.saved_state import BestWeights, State
from cbd_fast.training.tensor_files import load_weights, record_of


def selection_interval(config: Config, shards: ShardReader) -> int | None:
    """Steps between two evaluations on the validation split, of which the best weights are taken; None: the last are.

    Raises:
        InputError: the best weights are wanted, and there is no validation split.
    """
    has_split = "val" in shards.manifest.splits
    if config.checkpoint_selection == "best" and not has_split:
        raise InputError(
            f"checkpoint_selection: best, but {config.data.shards} has no validation split; make the shards with one "
            "(--val, --val-per-class), or use checkpoint_selection=last"
        )
    if config.checkpoint_selection == "last" or not has_split:
        return None
    return config.runtime.evaluate_every or -(-len(shards) // config.optimization.global_batch)


class Best:
    """The best weights so far, in a file of their own until the model is finished.

    Attributes:
        state: their step and accuracy.
        file: what is known of their file, on the main process.
    """

    def __init__(self, folder: Path, *, is_main: bool, checkpoint: State | None = None) -> None:
        """Removes files of other weights than those that the checkpoints know.

        Args:
            folder: the model's folder in the run.
            is_main: whether this process writes.
            checkpoint: state of the checkpoint from which the run goes on.

        Raises:
            InputError: the file of these weights is missing.
        """
        self._folder, self._is_main = folder, is_main
        self.state = (checkpoint.best if checkpoint else None) or BestWeights()
        self.file = checkpoint.best_file if checkpoint else None
        if self.state.step and not self._path(self.state.step).is_file():
            raise InputError(
                f"{self._path(self.state.step)}: missing, the best weights that the checkpoint beside it knows; "
                f"remove {folder} to train it again"
            )
        self.remove_others()

    def consider(self, step: int, per_class_mean: float, model: nn.Module) -> None:
        """Keeps a model's weights if they are better than all before; ``per_class_mean`` is alike on all processes.

        Raises:
            RunError: they are better, and not finite; those before stay.
        """
        if per_class_mean <= self.state.per_class_mean:
            return
        if self._is_main:
            self._folder.mkdir(parents=True, exist_ok=True)
            save_weights(self._path(step), model)
            self.file = record_of(self._path(step))
        self.state = BestWeights(step=step, per_class_mean=per_class_mean)
        self.remove_others()

    def load(self, model: nn.Module) -> None:
        """Puts the best weights into a model."""
        load_weights(self._path(self.state.step), model, f"remove {self._folder} to train it again", self.file)

    def remove_others(self) -> None:
        """Keeps the files of the checkpoints, from which a killed run goes on, and that of now."""
        if self._is_main:
            kept = {self._path(step) for step in (self.state.step, *best_steps(self._folder))}
            for path in set(best_files(self._folder)) - kept:
                path.unlink()

    def _path(self, step: int) -> Path:
        return self._folder / BEST_NAME.format(step)
