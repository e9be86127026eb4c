"""A few true steps and guesses of a model: how fast it goes on this machine, and what memory it takes."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, count

import torch
from accelerate import Accelerator
from torch import Tensor

from cbd_fast.config.schema import Config
from cbd_fast.errors import InputError
from cbd_fast.loading.cache.decoded_cache import block_bytes, choose_cached, require_possible, require_room
from cbd_fast.loading.loader import Loader
from cbd_fast.loading.sampling.policies import draw_fractions
from cbd_fast.preflight.throughput import agreed, fresh_train_step, training_rate
from cbd_fast.system import available_bytes, peak_memory_bytes, reset_peak_memory
from cbd_fast.training.context import RunContext, make_train_loader
from cbd_fast.training.models import CosineModel
from cbd_fast.training.optimized_model import inference_dtype, optimized_for_inference
from cbd_fast.training.plan import ModelSpec

SECONDS = 4.0  # of measuring training, and half as long evaluation


@dataclass(frozen=True, kw_only=True)
class CacheNeeds:
    """Images that are to be cached, and what they take of what there is.

    Attributes:
        num_images: how many.
        num_bytes: of the block that they are in.
        room_bytes: what is left for them beside training.
        where: ``this machine`` or ``the GPU``.
    """

    num_images: int
    num_bytes: int
    room_bytes: int
    where: str


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """Of one kind of model.

    Attributes:
        rate: images per second in training, loading included, of all processes together.
        evaluation_rate: likewise in evaluation.
        peak_bytes: the most memory that one process had, of its GPU, or without one of the machine.
        weight_bytes: of the model's file.
        optimizer_bytes: of the optimiser's.
        kept: cached images; None without any.
    """

    rate: float
    evaluation_rate: float
    peak_bytes: int
    weight_bytes: int
    optimizer_bytes: int
    kept: CacheNeeds | None


def measure(spec: ModelSpec, context: RunContext) -> ProbeResult:
    """Makes a model, has it learn and evaluates it for a few seconds, as a run would; on all processes.

    Raises:
        InputError: there is not as much memory.
        RunError: too many images cannot be decoded.
    """
    config, accelerator = context.config, context.accelerator
    reset_peak_memory(accelerator.device)
    with plain_out_of_memory(spec, config, accelerator):
        train_step = fresh_train_step(spec, config, accelerator)
        with make_train_loader(spec, context) as loader:
            # the batches that were there before the clock started must not count
            batches = chain.from_iterable(loader.steps(0, spec.num_steps) for _ in count())
            rate = training_rate(train_step, batches, SECONDS, num_warm_up=config.runtime.prefetch)
            kept = check_cache(spec, config, loader)
        form = optimized_for_inference(
            train_step.unwrapped_model, inference_dtype(config.mixed_precision, accelerator.device)
        )
        evaluation = evaluation_rate(form, context.test_loader, accelerator, SECONDS / 2)
    peaks = accelerator.gather(torch.tensor([peak_memory_bytes(accelerator.device)], device=accelerator.device))
    momenta = [value for state in train_step.optimizer.state.values() for value in state.values()]
    measured = ProbeResult(
        rate=rate,
        evaluation_rate=evaluation,
        peak_bytes=int(peaks.max()),
        weight_bytes=_num_bytes(train_step.unwrapped_model.state_dict().values()),
        optimizer_bytes=_num_bytes(value for value in momenta if isinstance(value, Tensor)),
        kept=kept,
    )
    train_step.free()
    return measured


def evaluation_rate(model: CosineModel, loader: Loader, accelerator: Accelerator, seconds: float) -> float:
    """Images per second, of all processes together, of guessing the first images of a split."""
    num_images, began = 0, time.perf_counter()
    with torch.inference_mode():
        for batch in loader:
            model(batch.images).logits.argmax(dim=1).tolist()  # waits for the device
            num_images += len(batch)
            if agreed(accelerator, time.perf_counter() - began > seconds):
                break
    rate = num_images / (time.perf_counter() - began)
    return float(accelerator.reduce(torch.tensor(rate, device=accelerator.device), "sum"))


def check_cache(spec: ModelSpec, config: Config, loader: Loader) -> CacheNeeds | None:
    """What the cached images take, once a model has learned; None without any.

    Raises:
        InputError: there is not as much memory beside training, or they would be of no use.
    """
    runtime, rows = config.runtime, loader.shards.index.rows
    if not (runtime.cache or runtime.cache_gb):
        return None
    fractions = draw_fractions(spec.sampling, loader.shards.index.starts)
    chosen = choose_cached(rows, fractions, fraction=runtime.cache or None, gigabytes=runtime.cache_gb or None)
    decodes_on_gpu = loader.decoder == "dali" and loader.device.type == "cuda"
    require_possible(chosen, on_gpu=runtime.cache_on_gpu, decodes_on_gpu=decodes_on_gpu)
    where, room = "this machine", available_bytes()
    if runtime.cache_on_gpu:
        # what PyTorch has taken but never used at once can be had back
        unused = torch.cuda.memory_reserved(loader.device) - torch.cuda.max_memory_allocated(loader.device)
        where, room = "the GPU", torch.cuda.mem_get_info(loader.device)[0] + unused
    kept = CacheNeeds(num_images=len(chosen), num_bytes=block_bytes(rows[chosen]), room_bytes=room, where=where)
    require_room(kept.num_images, kept.num_bytes, kept.room_bytes, kept.where)
    return kept


@contextmanager
def plain_out_of_memory(spec: ModelSpec, config: Config, accelerator: Accelerator) -> Iterator[None]:
    """Says in plain words that memory ran out, and what would help."""
    try:
        yield
    except RuntimeError as error:
        is_on_gpu = isinstance(error, torch.OutOfMemoryError)
        if not is_on_gpu and "DefaultCPUAllocator" not in str(error):
            raise
        settings = config.optimization
        per_process = settings.global_batch // settings.accumulation // accelerator.num_processes
        remedies = [f"raise optimization.accumulation (now {settings.accumulation})", "lower optimization.global_batch"]
        if is_on_gpu and config.mixed_precision == "no":
            remedies.append("set mixed_precision=bf16")
        raise InputError(
            f"{spec.name}: {per_process} images of {config.data.image_size} x {config.data.image_size} at a time, with "
            f"{config.model.backbone}, do not fit into the memory of {'the GPU' if is_on_gpu else 'this machine'}; "
            f"{', or '.join(remedies)}, or use more processes"
            + (", or lower cache_gb, which is on the GPU too" if config.runtime.cache_on_gpu else "")
        ) from error


def _num_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
