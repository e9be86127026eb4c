"""What a model in training is measured by: losses, rates, memory, and its accuracy on a split."""

import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from cbd_fast.loading.batch import Batch
from cbd_fast.loading.loader import Loader
from cbd_fast.loading.stats import LoaderStats
from cbd_fast.system import used_memory_bytes
from cbd_fast.training.context import RunContext
from cbd_fast.training.divergence import MIN_SKIPPED, diverged_tensors, divergence_error, skipped_error
from cbd_fast.training.evaluation import NotFiniteError, predict_split
from cbd_fast.training.metrics import evaluate, per_class_mean
from cbd_fast.training.models import CosineModel
from cbd_fast.training.optimized_model import inference_dtype, optimized_for_inference
from cbd_fast.training.plan import ModelSpec
from cbd_fast.training.saved_state import MeterState
from cbd_fast.training.selection import Best
from cbd_fast.training.tensor_files import named
from cbd_fast.training.train_step import TrainStep, broadcast_buffers


class Meter:
    """Adds up on the device what is logged; waits for the device only when a line is written."""

    def __init__(self, context: RunContext, spec: ModelSpec, first_step: int, state: MeterState | None = None) -> None:
        """Goes on with what was measured up to a checkpoint.

        Args:
            context: of the run.
            spec: the model.
            first_step: steps that are done.
            state: of the checkpoint; None at the start of training.
        """
        self._context, self._spec = context, spec
        self._num_skipped = state.num_skipped if state else 0
        self._bad_before = state.bad_images if state else ()
        self._first_step = self._checked_step = first_step
        self._restart(first_step)
        if state and state.last_step < first_step:
            self._restore(state)
        self._stats = LoaderStats()
        context.dashboard.begin(spec.name, first_step)

    def waiting(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Passes batches on and measures how long each was waited for."""
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self._seconds_waited += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    def add(self, losses: dict[str, Tensor], logits: Tensor, labels: Tensor) -> None:
        """Adds one part of a batch; means become sums over images, so that parts and processes add up."""
        self._num_images += len(labels)
        self._losses.append(losses["loss"].detach())
        sums = {name: loss.detach() * len(labels) for name, loss in losses.items()}
        sums["correct"] = (logits.detach().argmax(dim=1) == labels).sum()
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, 0) + value

    def count_update(self, optimizer: torch.optim.Optimizer) -> None:
        """Notes whether the update of a step was done, or passed over by fp16's loss scale."""
        self._num_skipped += getattr(optimizer, "step_was_skipped", False)

    def log(self, step: int, learning_rate: float, loader: Loader) -> None:
        """Writes and shows the means since the last line."""
        accelerator = self._context.accelerator
        totals = self.require_finite_losses(step, loader)
        num_images, waited = totals.pop("images"), totals.pop("seconds_waited")
        means = {name: total / num_images for name, total in totals.items()}
        stats = loader.stats()
        seconds = time.perf_counter() - self._since
        record = {
            "model": self._spec.name,
            "step": step,
            "train_top1": 100 * means.pop("correct"),
            **means,
            "learning_rate": learning_rate,
            "images_per_second": num_images / seconds,
            "data_wait_fraction": waited / accelerator.num_processes / seconds,
            "batch_milliseconds": stats.since(self._stats).milliseconds_per_batch(),
            "memory_gigabytes": used_memory_bytes(accelerator.device) / 1e9,
            "bad_images": len(self._bad_images_of_all(loader)),
        }
        self._context.run_dir.log(record)
        self._context.dashboard.log(record)
        self._restart(step)
        self._stats = stats

    def require_finite(self, step: int, train_step: TrainStep, loader: Loader) -> None:
        """Checks all that is to be saved: losses, weights, buffers and momenta.

        Raises:
            RunError: something is not finite, or no update was done at all; on all processes.
        """
        self.require_finite_losses(step, loader)
        if names := diverged_tensors(train_step.unwrapped_model, train_step.accelerator, train_step.optimizer):
            what = f"not finite after step {step}: {named(names)}"
            raise divergence_error(self._context, self._spec, what, step, loader, self._checked_step + 1)
        self._checked_step = step

    def require_finite_losses(self, step: int, loader: Loader | None = None) -> dict[str, float]:
        """Sums since the last line over all processes, by name.

        Raises:
            RunError: a loss is not finite, or no update was done at all; on all processes.
        """
        accelerator = self._context.accelerator
        names, local = self._local_sums()
        totals = dict(zip(names, accelerator.reduce(local, "sum").tolist(), strict=True))
        if not all(math.isfinite(total) for total in totals.values()):
            what = f"the loss is not finite somewhere in steps {self._last_step + 1} to {step}"
            first = self._first_without_loss(step)
            raise divergence_error(self._context, self._spec, what, first, loader)
        if self._num_skipped == step and (step >= MIN_SKIPPED or step == self._spec.num_steps):
            raise skipped_error(self._context, self._spec, step)
        return totals

    def state(self, step: int, loader: Loader) -> MeterState:
        """What the next line of the log begins with if a run goes on from here; all processes call it together."""
        accelerator = self._context.accelerator
        names, local = self._local_sums()
        of_processes = accelerator.gather(local[None]).T.tolist()
        sums = {name: tuple(values) for name, values in zip(names, of_processes, strict=True)}
        return MeterState(
            step=step,
            last_step=self._last_step,
            seconds=time.perf_counter() - self._since,
            num_images=tuple(map(int, sums.pop("images"))),
            seconds_waited=sums.pop("seconds_waited"),
            sums=sums,
            num_skipped=self._num_skipped,
            bad_images=tuple(self._bad_images_of_all(loader)),
        )

    def _local_sums(self) -> tuple[list[str], Tensor]:
        """Sums since the last line of this process, ``(n,)`` float32, and their names."""
        sums = self._sums | {
            "images": torch.tensor(self._num_images),
            "seconds_waited": torch.tensor(self._seconds_waited),
        }
        device = self._context.accelerator.device
        return list(sums), torch.stack([value.to(device, torch.float32) for value in sums.values()])

    def _first_without_loss(self, last_step: int) -> int:
        """The first step, counted from 1, whose loss is not finite on any process; all processes call it together."""
        accelerator = self._context.accelerator
        are_finite = torch.stack(self._losses).isfinite().tolist() if self._losses else []
        num_parts = max(1, len(are_finite) // max(1, last_step - self._first_step))
        first = are_finite.index(False) // num_parts + 1 if False in are_finite else last_step - self._first_step
        step = torch.tensor([self._first_step + first], device=accelerator.device)
        return int(accelerator.gather(step).min())

    def _bad_images_of_all(self, loader: Loader) -> list[int]:
        """Indices of the images that turned out bad on any process; several may have met the same."""
        accelerator = self._context.accelerator
        indices = torch.tensor([-1, *self._bad_before, *loader.bad_images], device=accelerator.device)
        everywhere = accelerator.gather(accelerator.pad_across_processes(indices, pad_index=-1))
        return everywhere.unique().tolist()[1:]

    def evaluate(self, model: CosineModel, step: int, best: Best | None = None) -> dict[str, Any]:
        """Evaluates on the test split, or for the choice of the best weights on the validation split.

        Returns:
            Metrics and counts, which are also written and shown.

        Raises:
            RunError: the model or its outputs are not finite; on all processes.
        """
        began, accelerator = time.perf_counter(), self._context.accelerator
        broadcast_buffers(model, accelerator)
        if names := diverged_tensors(model, accelerator):
            what = f"not finite after step {step}: {named(names)}"
            raise divergence_error(self._context, self._spec, what, step, None)
        loader = self._context.test_loader
        if best:
            assert self._context.val_loader
            loader = self._context.val_loader
        settings = self._context.config
        optimized = optimized_for_inference(model, inference_dtype(settings.mixed_precision, accelerator.device))
        try:
            predictions = predict_split(optimized, loader, accelerator, self._context.stops)
        except NotFiniteError as error:
            raise divergence_error(self._context, self._spec, f"{error} after step {step}", step, None) from error
        metrics = evaluate(predictions, settings.metrics)
        split = loader.shards.split
        self._context.run_dir.log({"model": self._spec.name, "step": step, "split": split, **metrics})
        self._context.dashboard.evaluated(self._spec.name, step, metrics, split)
        if best:
            # not as a user may have registered it: what is selected must not depend on what is shown
            selected_by = per_class_mean(predictions)
            assert selected_by is not None
            best.consider(step, selected_by, model)
        self._since += time.perf_counter() - began  # the rate is that of training
        return {"metrics": metrics, "counts": predictions.counts.tolist()}

    def _restart(self, step: int) -> None:
        self._sums: dict[str, Tensor] = {}
        self._losses: list[Tensor] = []  # of each part of a batch, to find the first that is not finite
        self._num_images, self._seconds_waited = 0, 0.0
        self._last_step = self._first_step = step
        self._since = time.perf_counter()

    def _restore(self, state: MeterState) -> None:
        """Takes this process's sums; of another number of processes, the first takes those of all."""
        accelerator = self._context.accelerator
        rank, is_same = accelerator.process_index, len(state.num_images) == accelerator.num_processes

        def mine(values: tuple[float, ...]) -> float:
            return values[rank] if is_same else sum(values) * accelerator.is_main_process

        self._sums = {
            name: torch.tensor(mine(values), device=accelerator.device) for name, values in state.sums.items()
        }
        self._num_images, self._seconds_waited = int(mine(state.num_images)), mine(state.seconds_waited)
        self._last_step = state.last_step
        self._since -= state.seconds
