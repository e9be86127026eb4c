"""How far a model is: what a run that was killed goes on from, and what is left when it is done."""

import time
from typing import Any

from cbd_fast.training.checkpoint import load_checkpoint, save_checkpoint, save_finished
from cbd_fast.training.model_folder import ModelCard, write_model_card
from cbd_fast.training.plan import ModelSpec
from cbd_fast.training.selection import Best
from cbd_fast.training.train_step import TrainStep, broadcast_buffers


class TrainingState:
    """A model's checkpoints, the seconds that its training took, and its best weights.

    Attributes:
        first_step: the next step, and how many were done before.
        best: the best weights so far; None if the last ones are taken.
    """

    def __init__(self, train_step: TrainStep, spec: ModelSpec, *, selects_best: bool) -> None:
        """Puts the last checkpoint, if there is one, into the model and its optimiser."""
        self._train_step, self._spec = train_step, spec
        self._accelerator = train_step.accelerator
        self._began = time.perf_counter()
        state = load_checkpoint(spec.folder, train_step.unwrapped_model, train_step.optimizer) or {}
        self.first_step, self._seconds_before = state.get("step", 0), state.get("seconds", 0.0)
        if state and self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(state["scaler"])
        self.best = None
        if selects_best:
            self.best = Best(spec.folder, is_main=self._accelerator.is_main_process, state=state.get("best"))

    def save(self, step: int) -> None:
        """Writes a checkpoint; all processes call it together."""
        broadcast_buffers(self._train_step.unwrapped_model, self._accelerator)
        if self._accelerator.is_main_process:
            save_checkpoint(
                self._spec.folder, step, self._train_step.unwrapped_model, self._train_step.optimizer, self._state()
            )
            if self.best:
                self.best.checkpointed()

    @property
    def seconds(self) -> float:
        """Seconds that training has taken, those before an interruption included."""
        return self._seconds_before + time.perf_counter() - self._began

    @property
    def selected(self) -> dict[str, Any] | None:
        """Step and accuracy of the weights that were selected on the validation split; None for the last weights."""
        return self.best.state if self.best else None

    def finish(self, result: dict[str, Any], card: ModelCard) -> None:
        """Writes the model, its card and its result in place of the checkpoints; all processes call it together.

        Args:
            result: what came out, for JSON.
            card: what loading the model needs.
        """
        if self._accelerator.is_main_process:
            self._spec.folder.mkdir(parents=True, exist_ok=True)
            write_model_card(self._spec.folder, card)
            # last the result, which says that all is there
            model, chosen = self._train_step.unwrapped_model, {"selected": self.selected}
            save_finished(self._spec.folder, model, result | chosen | self._state())
        self._accelerator.wait_for_everyone()

    def _state(self) -> dict[str, Any]:
        scaler = self._accelerator.scaler
        return {
            "identity": self._spec.identity,
            "seconds": self.seconds,
            "scaler": scaler.state_dict() if scaler is not None else None,
            "best": self.best.state if self.best else None,
        }
