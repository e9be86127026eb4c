"""A few true steps and guesses of a model: how fast it goes on this machine, and what memory it takes."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from cbd_fast.config.schema import Config
from cbd_fast.errors import InputError
from cbd_fast.loading.cache.decoded_cache import block_bytes, choose_resident, require_possible, require_room
from cbd_fast.loading.loader import Loader
from cbd_fast.loading.sampling.policies import draw_shares
from cbd_fast.preflight.throughput import agreed, rehearsed_learner, training_rate
from cbd_fast.system import available_bytes
from cbd_fast.training.context import Surroundings, make_train_loader
from cbd_fast.training.models import CosineModel
from cbd_fast.training.optimized_model import inference_dtype, inference_form
from cbd_fast.training.plan import Job

SECONDS = 4.0  # of measuring training, and half as long evaluation


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Pictures that are to be resident, and what they take of what there is.

    Attributes:
        num_pictures: how many.
        num_bytes: of the block that they are in.
        room_bytes: what is left for them beside training.
        where: ``this machine`` or ``the GPU``.
    """

    num_pictures: int
    num_bytes: int
    room_bytes: int
    where: str


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Of one kind of model.

    Attributes:
        rate: pictures per second in training, loading included, of all processes together.
        evaluation_rate: likewise in evaluation.
        peak_bytes: the most memory that one process had, of its GPU, or without one of the machine.
        weight_bytes: of the model's file.
        optimizer_bytes: of the optimiser's.
        kept: resident pictures; None without any.
    """

    rate: float
    evaluation_rate: float
    peak_bytes: int
    weight_bytes: int
    optimizer_bytes: int
    kept: Kept | None


def measure(job: Job, around: Surroundings) -> Measured:
    """Makes a model, has it learn and evaluates it for a few seconds, as a run would; on all processes.

    Raises:
        InputError: there is not as much memory.
        RunError: too many pictures cannot be decoded.
    """
    config, accelerator = around.config, around.accelerator
    start_peak(accelerator.device)
    with plain_out_of_memory(job, config, accelerator):
        learner = rehearsed_learner(job, config, accelerator)
        with make_train_loader(job, around) as loader:
            # the batches that were there before the clock started must not count
            batches = chain.from_iterable(loader.steps(0, job.num_steps) for _ in count())
            rate = training_rate(learner, batches, SECONDS, num_warm_up=config.runtime.prefetch)
            kept = check_resident(job, config, loader)
        form = inference_form(learner.plain, inference_dtype(config.mixed_precision, accelerator.device))
        evaluation = evaluation_rate(form, around.test_loader, accelerator, SECONDS / 2)
    peaks = accelerator.gather(torch.tensor([peak_bytes(accelerator.device)], device=accelerator.device))
    momenta = [value for state in learner.optimizer.state.values() for value in state.values()]
    measured = Measured(
        rate=rate,
        evaluation_rate=evaluation,
        peak_bytes=int(peaks.max()),
        weight_bytes=_num_bytes(learner.plain.state_dict().values()),
        optimizer_bytes=_num_bytes(value for value in momenta if isinstance(value, Tensor)),
        kept=kept,
    )
    learner.free()
    return measured


def evaluation_rate(model: CosineModel, loader: Loader, accelerator: Accelerator, seconds: float) -> float:
    """Pictures per second, of all processes together, of guessing the first pictures of a split."""
    num_pictures, began = 0, time.perf_counter()
    with torch.inference_mode():
        for batch in loader:
            model(batch.images).logits.argmax(dim=1).tolist()  # waits for the device
            num_pictures += len(batch)
            if agreed(accelerator, time.perf_counter() - began > seconds):
                break
    rate = num_pictures / (time.perf_counter() - began)
    return float(accelerator.reduce(torch.tensor(rate, device=accelerator.device), "sum"))


def check_resident(job: Job, config: Config, loader: Loader) -> Kept | None:
    """What the resident pictures take, once a model has learned; None without any.

    Raises:
        InputError: there is not as much memory beside training, or they would be of no use.
    """
    runtime, rows = config.runtime, loader.shards.index.rows
    if not (runtime.resident or runtime.resident_gb):
        return None
    shares = draw_shares(job.sampling, loader.shards.index.starts)
    chosen = choose_resident(rows, shares, share=runtime.resident or None, gigabytes=runtime.resident_gb or None)
    decodes_on_gpu = loader.decoder == "dali" and loader.device.type == "cuda"
    require_possible(chosen, on_gpu=runtime.resident_on_gpu, decodes_on_gpu=decodes_on_gpu)
    where, room = "this machine", available_bytes()
    if runtime.resident_on_gpu:
        # what PyTorch has taken but never used at once can be had back
        unused = torch.cuda.memory_reserved(loader.device) - torch.cuda.max_memory_allocated(loader.device)
        where, room = "the GPU", torch.cuda.mem_get_info(loader.device)[0] + unused
    kept = Kept(num_pictures=len(chosen), num_bytes=block_bytes(rows[chosen]), room_bytes=room, where=where)
    require_room(kept.num_pictures, kept.num_bytes, kept.room_bytes, kept.where)
    return kept


@contextmanager
def plain_out_of_memory(job: Job, config: Config, accelerator: Accelerator) -> Iterator[None]:
    """Says in plain words that memory ran out, and what would help."""
    try:
        yield
    except RuntimeError as error:
        is_on_gpu = isinstance(error, torch.OutOfMemoryError)
        if not is_on_gpu and "DefaultCPUAllocator" not in str(error):
            raise
        settings = config.optimization
        share = settings.global_batch // settings.accumulation // accelerator.num_processes
        remedies = [f"raise optimization.accumulation (now {settings.accumulation})", "lower optimization.global_batch"]
        if is_on_gpu and config.mixed_precision == "no":
            remedies.append("set mixed_precision=bf16")
        raise InputError(
            f"{job.name}: {share} pictures of {config.data.image_size} x {config.data.image_size} at a time, with "
            f"{config.model.backbone}, do not fit into the memory of {'the GPU' if is_on_gpu else 'this machine'}; "
            f"{', or '.join(remedies)}, or use more processes"
            + (", or lower resident_gb, which is on the GPU too" if config.runtime.resident_on_gpu else "")
        ) from error


def start_peak(device: torch.device) -> None:
    """Forgets the most memory that there was so far."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):  # where the system does not allow it, the peak is that of the whole process: too much
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: torch.device) -> int:
    """The most memory of the GPU, or without one of the machine, that this process has had since ``start_peak``."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024


def _num_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
