"""One step of training: what both stages, the preflight and the benchmarks repeat."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor

from cbd_fast.config.schema import Config
from cbd_fast.loading.batch import Batch
from cbd_fast.training.losses import Objective
from cbd_fast.training.models import CosineModel, Output
from cbd_fast.training.optim import make_optimizer
from cbd_fast.training.optimized_model import SideStream, inference_dtype, optimized_teachers
from cbd_fast.training.plan import ModelSetup

# steps after which compiling, which takes time first, is won back on two cores: see benchmarks/train_step.py
MIN_STEPS_FOR_TEACHERS, MIN_STEPS_FOR_MODEL = 500, 2000
MAX_SIZE_ON_CPU = 64  # of images, above which compiling a model for the CPU is not won back at all


@dataclass(frozen=True, kw_only=True)
class TrainStep:
    """A model on its device, and what it learns with.

    Attributes:
        accelerator: joins the processes of the run.
        unwrapped_model: the model itself, which is evaluated and saved.
        model: the same as Accelerate has prepared it.
        optimizer: the optimiser as prepared by Accelerate.
        teachers: finished models, optimised for inference; None without any.
        objective: the losses that are lowered.
        layout: memory format of images and weights.
    """

    accelerator: Accelerator
    unwrapped_model: CosineModel
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    teachers: SideStream | None
    objective: Objective
    layout: torch.memory_format

    def update(
        self, batch: Batch, learning_rate: float, progress: float = 0.0
    ) -> Iterator[tuple[dict[str, Tensor], Output, Tensor]]:
        """Updates the weights once, with this process's part of a batch, which it takes in as many parts as is set.

        Args:
            batch: this process's images.
            learning_rate: learning rate of this update.
            progress: how far training is, 0 to 1.

        Yields:
            For each part the losses, what the model made of the images, and their labels.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        num_parts = self.accelerator.gradient_accumulation_steps
        images = batch.images.contiguous(memory_format=self.layout)
        for part, labels in zip(images.chunk(num_parts), batch.labels.chunk(num_parts), strict=True):
            yield *self.learn(part, labels, progress), labels

    def learn(self, images: Tensor, labels: Tensor, progress: float = 0.0) -> tuple[dict[str, Tensor], Output]:
        """Learns from a batch, or a part of one, after whose last part Accelerate updates the weights.

        Args:
            images: ``(B, 3, H, W)`` on the model's device.
            labels: ``(B,)`` int64 on the model's device.
            progress: how far training is, 0 to 1.

        Returns:
            The losses, and what the model made of the images; only fp16's loss scale waits for the device here.
        """
        with self.accelerator.accumulate(self.model):
            target = self.teachers.start(images) if self.teachers else None
            with self.accelerator.autocast():
                output = self.model(images)
            losses = self.objective(output, labels, target() if target else None, progress)
            self.accelerator.backward(losses["loss"])
            self.optimizer.step()
            self.optimizer.zero_grad()
        return losses, output

    def free(self) -> None:
        """Lets go of the device's memory and of what was compiled, of which torch.compile keeps a few kinds at most."""
        self.accelerator.free_memory(self.model, self.optimizer)
        torch._dynamo.reset()


def make_train_step(setup: ModelSetup, config: Config, accelerator: Accelerator) -> TrainStep:
    """Puts a model and its teachers on the device, in the form in which they train fastest."""
    device, runtime = accelerator.device, config.runtime
    if accelerator.scaler is not None:  # fp16; each model's loss scale is its own
        accelerator.scaler = torch.amp.GradScaler(device.type)
    layout = torch.channels_last if runtime.channels_last else torch.contiguous_format
    unwrapped = setup.model.to(device).to(memory_format=layout)
    compiles_model, compiles_teachers = what_is_compiled(config, device, setup.spec.num_steps)
    torch._dynamo.config.suppress_errors = runtime.compile is None  # what nobody asked for must not end a run
    teachers = None
    if setup.teachers:
        precision = config.mixed_precision if runtime.teacher_precision == "auto" else runtime.teacher_precision
        best = optimized_teachers(setup.teachers.to(device), inference_dtype(precision, device), compiles_teachers)
        teachers = SideStream(best, device)
    model, optimizer = accelerator.prepare(unwrapped, make_optimizer(unwrapped, config.optimization))
    if compiles_model:
        model.compile()
    return TrainStep(
        accelerator=accelerator,
        unwrapped_model=unwrapped,
        model=model,
        optimizer=optimizer,
        teachers=teachers,
        objective=setup.objective.to(device),
        layout=layout,
    )


def what_is_compiled(config: Config, device: torch.device, num_steps: int) -> tuple[bool, bool]:
    """Whether the model that learns is compiled, and whether its teachers are."""
    setting = config.runtime.compile
    if setting is not None:
        return setting, setting
    if num_steps < MIN_STEPS_FOR_TEACHERS or not compiler_works(device):
        return False, False
    # on two cores a step of ResNet-32 took 218 ms instead of 257, but one of ResNet-50 as long as before
    is_small = config.mixed_precision == "no" and config.data.image_size <= MAX_SIZE_ON_CPU
    pays_for_model = device.type != "cpu" or is_small
    return pays_for_model and num_steps >= MIN_STEPS_FOR_MODEL, True


@cache
def compiler_works(device: torch.device) -> bool:
    """Whether torch.compile can be used; on the CPU it needs a C++ compiler and Python's headers."""
    try:
        torch.compile(torch.sin)(torch.zeros(2, device=device))
    except Exception as error:  # of many kinds
        reason = str(error).splitlines()[0]
        warnings.warn(f"torch.compile does not work here ({reason}); this run goes on without it", stacklevel=1)
        return False
    return True


def broadcast_buffers(model: torch.nn.Module, accelerator: Accelerator) -> None:
    """Gives every process the main one's batch-norm statistics, which are the ones that are saved."""
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            buffer.copy_(broadcast(buffer))
