"""Training that has become NaN or infinite: found on all processes at once, and told with what led to it."""

from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from cbd_fast.config.schema import Config
from cbd_fast.errors import RunError, printable
from cbd_fast.loading.loader import Loader
from cbd_fast.training.checkpoint import checkpoints, momenta_of
from cbd_fast.training.context import RunContext
from cbd_fast.training.plan import ModelSpec

USUAL_LEARNING_RATE = 0.1  # optimization.base_learning_rate of the paper
MAX_STEPS = 20  # the last ones whose images are listed
NUM_NAMED = 3  # images in a message
MIN_SKIPPED = 50  # updates; fp16's loss scale finds its size in 16


def diverged_tensors(
    model: nn.Module, accelerator: Accelerator, optimizer: torch.optim.Optimizer | None = None
) -> list[str]:
    """Names of weights, buffers and momenta that are not finite on any process; waits for the device once."""
    momenta = momenta_of(model, optimizer) if optimizer else {}
    tensors = dict(model.state_dict()) | {f"momentum of {name}": value for name, value in momenta.items()}
    floating = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    finite = torch.stack([tensor.isfinite().all() for tensor in floating.values()]).float()
    if accelerator.num_processes > 1:
        finite = accelerator.reduce(finite, "sum")
    return [name for name, number in zip(floating, finite.tolist(), strict=True) if number < accelerator.num_processes]


def divergence_error(
    context: RunContext, spec: ModelSpec, what: str, step: int, loader: Loader | None, first_step: int | None = None
) -> RunError:
    """What to raise; all processes call it together. The images are logged, the first few of them are in the message.

    Args:
        context: of the run.
        spec: the model that has diverged.
        what: what is not finite, and where.
        step: the last step, counted from 1, whose images may have led to it.
        loader: of the images that the model learns from; None where these do not matter.
        first_step: the first such step; by default the same.
    """
    images = ""
    if loader is not None:
        steps = range(max(first_step or step, step - MAX_STEPS + 1), step + 1)
        indices = _indices_of(steps, loader, context.accelerator)
        names = [loader.shards.name(index) for index in indices[:NUM_NAMED]]
        record = {"model": spec.name, "step": step, "failed": what, "stage": spec.stage, "indices": indices.tolist()}
        context.run_dir.log(record)
        context.run_dir.sync()
        of_steps = f"step {step}" if len(steps) == 1 else f"steps {steps[0]} to {step}"
        shown = ", ".join(printable(name) for name in names)
        if num_more := len(indices) - len(names):
            shown += f" and {num_more} more"
        images = f" ({of_steps}: images {shown}, all in metrics.jsonl)"
    saved = checkpoints(spec.folder)
    stays = f"the last good checkpoint, {saved[-1]}, stays" if saved else "there is no checkpoint yet"
    return RunError(f"{spec.name}: {what}{images}; {stays}; {_advice(context.config, spec)}")


def skipped_error(context: RunContext, spec: ModelSpec, step: int) -> RunError:
    """What to raise where no update was done at all."""
    return RunError(
        f"{spec.name}: all {step} updates were passed over, as their gradients are too large for fp16 at any loss "
        f"scale, so nothing was learned; {_advice(context.config, spec)}"
    )


def _advice(config: Config, spec: ModelSpec) -> str:
    """Settings with which the run can be begun: in the same folder only those it began with are taken."""
    rate = config.optimization.base_learning_rate
    lower = USUAL_LEARNING_RATE if rate > USUAL_LEARNING_RATE else rate / 10
    settings = [f"output={_unused(config.output)}", f"optimization.base_learning_rate={lower:g}"]
    if config.mixed_precision == "fp16":
        settings.append("mixed_precision=bf16")
    if spec.teachers:  # which are finished, and are used as they are
        teachers = ", ".join(f"{{path: {folder}}}" for folder in spec.teachers)
        settings.append(f"'stage_one.teachers=[{teachers}]'")
    return f"train in another folder with a lower learning rate: {' '.join(settings)}"


def _unused(output: str) -> str:
    return next(name for number in range(2, 10**6) if not Path(name := f"{output.rstrip('/')}-{number}").exists())


def _indices_of(steps: range, loader: Loader, accelerator: Accelerator) -> np.ndarray:
    """Indices of the images of steps counted from 1, of all processes, each once."""
    local = torch.from_numpy(np.concatenate([loader.plan(step - 1).indices for step in steps]))
    if accelerator.num_processes > 1:
        local = accelerator.gather(local.to(accelerator.device)).cpu()
    return np.array(list(dict.fromkeys(local.tolist())))
