"""What a model in training is measured by: losses, rates, memory, and its accuracy on a split."""

import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from cbd_fast.errors import RunError
from cbd_fast.loading.batch import Batch
from cbd_fast.loading.loader import Loader
from cbd_fast.loading.stats import LoaderStats
from cbd_fast.system import used_memory_bytes
from cbd_fast.training.context import RunContext
from cbd_fast.training.evaluation import predict_split
from cbd_fast.training.metrics import evaluate, per_class_mean
from cbd_fast.training.models import CosineModel
from cbd_fast.training.optimized_model import inference_dtype, optimized_for_inference
from cbd_fast.training.plan import ModelSpec
from cbd_fast.training.selection import Best
from cbd_fast.training.train_step import broadcast_buffers


class Meter:
    """Adds up on the device what is logged; waits for the device only when a line is written."""

    def __init__(self, context: RunContext, spec: ModelSpec, first_step: int) -> None:
        self._context, self._spec = context, spec
        self._restart(first_step)
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
        sums = {name: loss.detach() * len(labels) for name, loss in losses.items()}
        sums["correct"] = (logits.detach().argmax(dim=1) == labels).sum()
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, 0) + value

    def log(self, step: int, learning_rate: float, loader: Loader) -> None:
        """Writes and shows the means since the last line."""
        accelerator = self._context.accelerator
        totals = self.require_finite_losses(step)
        num_images, waited = totals.pop("images"), totals.pop("seconds_waited")
        means = {name: total / num_images for name, total in totals.items()}
        bad_images = self._bad_images_of_all(loader)
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
            "bad_images": bad_images,
        }
        self._context.run_dir.log(record)
        self._context.dashboard.log(record)
        self._restart(step)
        self._stats = stats

    def require_finite_losses(self, step: int) -> dict[str, float]:
        """Sums since the last line over all processes, by name.

        Raises:
            RunError: a loss is not finite; on all processes.
        """
        sums = self._sums | {
            "images": torch.tensor(self._num_images),
            "seconds_waited": torch.tensor(self._seconds_waited),
        }
        accelerator = self._context.accelerator
        local = torch.stack([value.to(accelerator.device, torch.float32) for value in sums.values()])
        totals = dict(zip(sums, accelerator.reduce(local, "sum").tolist(), strict=True))
        if not all(math.isfinite(total) for total in totals.values()):
            raise RunError(
                f"{self._spec.name}: the loss is not finite somewhere in steps {self._last_step + 1} to {step}; "
                "lower optimization.base_learning_rate, or use mixed_precision=bf16 instead of fp16"
            )
        return totals

    def _bad_images_of_all(self, loader: Loader) -> int:
        """How many images turned out bad on any process; several may have met the same."""
        accelerator = self._context.accelerator
        indices = torch.tensor([-1, *loader.bad_images], device=accelerator.device)
        everywhere = accelerator.gather(accelerator.pad_across_processes(indices, pad_index=-1))
        return len(everywhere.unique()) - 1

    def evaluate(self, model: CosineModel, step: int, best: Best | None = None) -> dict[str, Any]:
        """Evaluates on the test split, or for the choice of the best weights on the validation split.

        Returns:
            Metrics and counts, which are also written and shown.
        """
        began, accelerator = time.perf_counter(), self._context.accelerator
        broadcast_buffers(model, accelerator)
        loader = self._context.test_loader
        if best:
            assert self._context.val_loader
            loader = self._context.val_loader
        settings = self._context.config
        optimized = optimized_for_inference(model, inference_dtype(settings.mixed_precision, accelerator.device))
        predictions = predict_split(optimized, loader, accelerator)
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
        self._num_images, self._seconds_waited = 0, 0.0
        self._last_step, self._since = step, time.perf_counter()
