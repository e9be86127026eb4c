"""The one training loop of both stages."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor

from cbd_fast.config import Config
from cbd_fast.dashboard import Dashboard
from cbd_fast.errors import RunError
from cbd_fast.loading.loader import Batch, Loader
from cbd_fast.loading.stats import LoaderStats
from cbd_fast.training.checkpoint import load_checkpoint, save_checkpoint, save_finished
from cbd_fast.training.evaluate import count_correct, summarize
from cbd_fast.training.inference import inference_dtype, inference_form
from cbd_fast.training.learner import make_learner
from cbd_fast.training.models import CosineModel
from cbd_fast.training.optim import cosine_learning_rate
from cbd_fast.training.records import Records
from cbd_fast.training.selection import Best
from cbd_fast.training.stages import Job, Stage


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a stage is trained with: settings, processes, the run's records and the person who watches."""

    config: Config
    accelerator: Accelerator
    records: Records
    dashboard: Dashboard
    test_loader: Loader
    val_loader: Loader | None  # if the best weights on the validation split are taken
    evaluate_every: int | None  # steps; None: only at the end
    on_bad_picture: Callable[[str, str], None]  # records and shows place and reason of a picture that cannot be used


def make_loader(config: Config, accelerator: Accelerator, **chosen: Any) -> Loader:
    """A loader of the run's shards, as its settings and this process want it; ``chosen`` says of which pictures."""
    return Loader(
        config.data.shards,
        batch_size=config.optimization.global_batch,
        image_size=config.data.image_size,
        decoder=config.runtime.decoder,
        device=accelerator.device,
        num_threads=config.runtime.num_threads,
        prefetch=config.runtime.prefetch,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        max_bad_share=config.runtime.max_bad_share,
        **chosen,
    )


def make_train_loader(job: Job, around: Surroundings, **chosen: Any) -> Loader:
    """A loader of the pictures that a model learns from."""
    return make_loader(
        around.config,
        around.accelerator,
        split="train",
        sampling=job.sampling,
        seed=job.seed,
        augmentation=job.augmentation,
        total_steps=job.num_steps,
        on_bad_picture=around.on_bad_picture,
        **chosen,
    )


def train(stage: Stage, around: Surroundings) -> None:
    """Trains a model from its last checkpoint, or from the start, to its end, and evaluates it.

    Raises:
        RunError: the loss is not finite, or too many pictures cannot be decoded.
    """
    config, accelerator, job = around.config, around.accelerator, stage.job
    settings, runtime = config.optimization, config.runtime
    if accelerator.scaler is not None:  # fp16; each model's loss scale is its own
        accelerator.scaler = torch.amp.GradScaler(accelerator.device.type)
    learner = make_learner(stage, config, accelerator)
    model, optimizer = learner.plain, learner.optimizer
    state = load_checkpoint(job.folder, model, optimizer)
    first, seconds_before = (state["step"], state["seconds"]) if state else (0, 0.0)
    began = time.perf_counter()
    if state and accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(state["scaler"])
    best = None
    if around.val_loader:
        best = Best(job.folder, is_main=accelerator.is_main_process, found=state and state.get("best"))
    around.records.rewind(job.name, first)
    meter = _Meter(around, stage, first)

    def state_now() -> dict[str, Any]:
        scaler = accelerator.scaler
        return {
            "identity": job.identity,
            "seconds": seconds_before + time.perf_counter() - began,
            "scaler": scaler.state_dict() if scaler is not None else None,
            "best": best.state if best else None,
        }

    resident = {
        "resident": runtime.resident,
        "resident_gb": runtime.resident_gb,
        "resident_on_gpu": runtime.resident_on_gpu,
        "on_filling": around.dashboard.filling,
    }
    with make_train_loader(job, around, **resident) as loader:
        for batch in meter.waiting(loader.steps(first, job.num_steps)):
            if runtime.record_batches:
                around.records.log_batch(job.name, batch.step, loader.plan(batch.step))
            learning_rate = cosine_learning_rate(settings.learning_rate, batch.step, job.num_steps)
            for losses, output, labels in learner.update(batch, learning_rate):
                meter.add(losses, output.logits, labels)
            done = batch.step + 1
            is_last = done == job.num_steps
            if done % runtime.log_every == 0 or is_last:
                meter.log(done, learning_rate, loader)
            if is_last:
                break
            # first, so that a checkpoint of the same step knows what came out
            if around.evaluate_every and done % around.evaluate_every == 0:
                meter.evaluate(model, done, best)
            if done % runtime.checkpoint_every == 0:
                meter.require_finite_losses(done)  # or the run would go on from what it cannot go on from
                _agree_on_buffers(model, accelerator)
                if accelerator.is_main_process:
                    save_checkpoint(job.folder, done, model, optimizer, state_now())
                    if best:
                        best.checkpointed()

    if best:
        meter.evaluate(model, job.num_steps, best)
        accelerator.wait_for_everyone()  # the main process has written the file
        best.load(model)
    result = meter.evaluate(model, job.num_steps) | {"selected": best.state if best else None}
    if accelerator.is_main_process:
        save_finished(job.folder, model, result | state_now())
    accelerator.wait_for_everyone()
    learner.free()


class _Meter:
    """Adds up on the device what is logged; waits for the device only when a line is written."""

    def __init__(self, around: Surroundings, stage: Stage, first: int) -> None:
        self._around, self._job = around, stage.job
        self._restart(first)
        self._stats = LoaderStats()
        around.dashboard.begin(stage.job.name, first)

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
        """Adds one part of a batch; means become sums over pictures, so that parts and processes add up."""
        self._num_pictures += len(labels)
        sums = {name: loss.detach() * len(labels) for name, loss in losses.items()}
        sums["correct"] = (logits.detach().argmax(dim=1) == labels).sum()
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, 0) + value

    def log(self, step: int, learning_rate: float, loader: Loader) -> None:
        """Writes and shows the means since the last line."""
        accelerator = self._around.accelerator
        totals = self.require_finite_losses(step)
        num_pictures, waited = totals.pop("pictures"), totals.pop("seconds_waited")
        means = {name: total / num_pictures for name, total in totals.items()}
        bad_pictures = self._bad_pictures_of_all(loader)
        stats = loader.stats()
        seconds = time.perf_counter() - self._since
        record = {
            "model": self._job.name,
            "step": step,
            "train_top1": 100 * means.pop("correct"),
            **means,
            "learning_rate": learning_rate,
            "pictures_per_second": num_pictures / seconds,
            "data_wait_share": waited / accelerator.num_processes / seconds,
            "batch_milliseconds": stats.since(self._stats).milliseconds_per_batch(),
            "memory_gigabytes": _memory_bytes(accelerator.device) / 1e9,
            "bad_pictures": bad_pictures,
        }
        self._around.records.log(record)
        self._around.dashboard.log(record)
        self._restart(step)
        self._stats = stats

    def require_finite_losses(self, step: int) -> dict[str, float]:
        """Sums since the last line over all processes, by name.

        Raises:
            RunError: a loss is not finite; on all processes.
        """
        sums = self._sums | {
            "pictures": torch.tensor(self._num_pictures),
            "seconds_waited": torch.tensor(self._seconds_waited),
        }
        accelerator = self._around.accelerator
        local = torch.stack([value.to(accelerator.device, torch.float32) for value in sums.values()])
        totals = dict(zip(sums, accelerator.reduce(local, "sum").tolist(), strict=True))
        if not all(math.isfinite(total) for total in totals.values()):
            raise RunError(
                f"{self._job.name}: the loss is not finite somewhere in steps {self._last_step + 1} to {step}; "
                "lower optimization.base_learning_rate, or use mixed_precision=bf16 instead of fp16"
            )
        return totals

    def _bad_pictures_of_all(self, loader: Loader) -> int:
        """How many pictures turned out bad on any process; several may have met the same."""
        accelerator = self._around.accelerator
        rows = torch.tensor([-1, *loader.bad_pictures], device=accelerator.device)
        everywhere = accelerator.gather(accelerator.pad_across_processes(rows, pad_index=-1))
        return len(everywhere.unique()) - 1

    def evaluate(self, model: CosineModel, step: int, best: Best | None = None) -> dict[str, Any]:
        """Evaluates on the test split, or for the choice of the best weights on the validation split.

        Returns:
            Metrics and counts, which are also written and shown.
        """
        began, accelerator = time.perf_counter(), self._around.accelerator
        _agree_on_buffers(model, accelerator)
        loader = self._around.test_loader
        if best:
            assert self._around.val_loader
            loader = self._around.val_loader
        form = inference_form(model, inference_dtype(self._around.config.mixed_precision, accelerator.device))
        counts = count_correct(form, loader, accelerator)
        evaluation = summarize(counts, loader.shards.train_counts)
        record = {"model": self._job.name, "step": step, "split": loader.shards.split, **evaluation.to_dict()}
        self._around.records.log(record)
        self._around.dashboard.evaluated(self._job.name, step, evaluation.to_dict(), loader.shards.split)
        if best:
            assert evaluation.per_class_mean is not None
            best.offer(step, evaluation.per_class_mean, model)
        self._since += time.perf_counter() - began  # the rate is that of training
        return {"metrics": evaluation.to_dict(), "counts": counts.tolist()}

    def _restart(self, step: int) -> None:
        self._sums: dict[str, Tensor] = {}
        self._num_pictures, self._seconds_waited = 0, 0.0
        self._last_step, self._since = step, time.perf_counter()


def _agree_on_buffers(model: torch.nn.Module, accelerator: Accelerator) -> None:
    """Gives every process the main one's batch-norm statistics, which are the ones that are saved."""
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            buffer.copy_(broadcast(buffer))


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return psutil.Process().memory_info().rss
