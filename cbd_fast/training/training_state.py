"""How far a model is: what a run that was killed goes on from, and what is left when it is done."""

import time
from typing import Any

import torch

from cbd_fast.config.sections import Runtime
from cbd_fast.errors import InputError
from cbd_fast.training.checkpoint import (
    CHECKPOINT_NAME,
    MODEL_NAME,
    STATE_NAME,
    load_checkpoint,
    save_checkpoint,
    save_weights,
)
from cbd_fast.training.finished import save_finished
from cbd_fast.training.model_folder import ModelCard, write_model_card
from cbd_fast.training.plan import ModelSpec
from cbd_fast.training.saved_state import MeterState, Result, State
from cbd_fast.training.selection import Best
from cbd_fast.training.tensor_files import REMEDY
from cbd_fast.training.train_step import TrainStep, broadcast_buffers


class TrainingState:
    """A model's checkpoints, the seconds that its training took, and its best weights.

    Attributes:
        first_step: the next step, and how many were done before.
        evaluated_step: the last step after which the model was evaluated, or 0.
        best: the best weights so far; None if the last ones are taken.
        meter: what the checkpoint knows of the next line of the log; None at the start.
        damaged: what is wrong with each checkpoint that is newer than the one from which training goes on.
    """

    def __init__(
        self, train_step: TrainStep, spec: ModelSpec, *, selects_best: bool, runtime: Runtime | None = None
    ) -> None:
        """Puts the newest checkpoint that is whole, if there is any, into the model and its optimiser.

        Args:
            train_step: the model and its optimiser.
            spec: the model's folder and identity.
            selects_best: whether the best weights are kept.
            runtime: how often there are checkpoints, and how many; None: the defaults.

        Raises:
            InputError: there are checkpoints, and none can be used, or the processes do not see the same ones.
        """
        self._train_step, self._spec, self._runtime = train_step, spec, runtime or Runtime()
        self._accelerator = train_step.accelerator
        self._began = time.perf_counter()
        loaded = load_checkpoint(spec.folder, train_step.unwrapped_model, train_step.optimizer)
        state = loaded.state if loaded else None
        self.damaged = loaded.damaged if loaded else ()
        self.first_step, self._seconds_before = (state.step, state.seconds) if state else (0, 0.0)
        self._saved_seconds = self._seconds_before
        self.evaluated_step, self.meter = (state.evaluated_step, state.meter) if state else (0, None)
        self._check_same_step()
        if state and self._accelerator.scaler is not None:
            self._restore_scaler(state)
        self.best = None
        if selects_best:
            self.best = Best(spec.folder, is_main=self._accelerator.is_main_process, checkpoint=state)

    def is_due(self, step: int) -> bool:
        """Whether there is to be a checkpoint after a step, by the number of steps; alike on all processes."""
        return step % self._runtime.checkpoint_interval(self._spec.num_steps) == 0

    @property
    def is_time(self) -> bool:
        """Whether there is to be a checkpoint by the clock of the main process; others say no."""
        waited = self.seconds - self._saved_seconds
        return self._accelerator.is_main_process and waited > 60 * self._runtime.checkpoint_minutes

    def save(self, step: int, meter: MeterState | None = None) -> None:
        """Writes a checkpoint; all processes call it together.

        Args:
            step: how many steps are done.
            meter: what the next line of the log begins with.

        Raises:
            RunError: a tensor is not finite; the checkpoints before stay.
        """
        broadcast_buffers(self._train_step.unwrapped_model, self._accelerator)
        if self._accelerator.is_main_process:
            model, optimizer = self._train_step.unwrapped_model, self._train_step.optimizer
            state = self._state(step, meter)
            save_checkpoint(self._spec.folder, model, optimizer, state, keep=self._runtime.keep_checkpoints)
            if self.best:
                self.best.remove_others()
            self._saved_seconds = state.seconds

    @property
    def seconds(self) -> float:
        """Seconds that training has taken, those before an interruption included."""
        return self._seconds_before + time.perf_counter() - self._began

    @property
    def selected(self) -> dict[str, Any] | None:
        """Step and accuracy of the weights that were selected on the validation split; None for the last weights."""
        return self.best.state.model_dump() if self.best else None

    def finish(self, evaluation: dict[str, Any], card: ModelCard) -> None:
        """Writes the model, its card and its result in place of the checkpoints; all processes call it together.

        Args:
            evaluation: ``metrics`` and ``counts`` on the test split.
            card: what loading the model needs.

        Raises:
            RunError: a weight is not finite; the checkpoints stay.
        """
        folder = self._spec.folder
        if self._accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            save_weights(folder / MODEL_NAME, self._train_step.unwrapped_model)
            write_model_card(folder, card)
            selected = self.best.state if self.best else None
            result = Result(
                identity=self._spec.identity,
                metrics=evaluation["metrics"],
                seconds=self.seconds,
                counts=tuple(map(tuple, evaluation["counts"])),
                selected=selected,
            )
            save_finished(folder, result)  # last, as it says that all is there
        self._accelerator.wait_for_everyone()

    def _state(self, step: int, meter: MeterState | None) -> State:
        scaler = self._accelerator.scaler
        return State(
            step=step,
            identity=self._spec.identity,
            seconds=self.seconds,
            evaluated_step=self.evaluated_step,
            scaler=scaler.state_dict() if scaler is not None else None,
            best=self.best.state if self.best else None,
            best_file=self.best.file if self.best else None,
            meter=meter,
        )

    def _restore_scaler(self, state: State) -> None:
        scaler = self._accelerator.scaler
        names = scaler.state_dict().keys()
        if (saved := state.scaler or {}).keys() != names:
            path = self._spec.folder / CHECKPOINT_NAME.format(state.step) / STATE_NAME
            raise InputError(f"{path}: damaged (scaler has {sorted(saved)}, not {sorted(names)}); {REMEDY}")
        scaler.load_state_dict(saved)

    def _check_same_step(self) -> None:
        """Processes that began with different steps would wait for each other for ever."""
        if self._accelerator.num_processes == 1:
            return
        steps = self._accelerator.gather(torch.tensor([self.first_step], device=self._accelerator.device)).tolist()
        if len(set(steps)) > 1:
            raise InputError(
                f"{self._spec.folder}: the processes see different checkpoints there (of steps {steps}); all machines "
                "must share the folder of the run"
            )
