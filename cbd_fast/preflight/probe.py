"""A few true steps and predictions of one kind of model: how fast it is on this machine, and what memory it takes."""

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
from cbd_fast.resources import available_bytes
from cbd_fast.system import peak_memory_bytes, reset_peak_memory
from cbd_fast.training.context import RunContext, make_train_loader
from cbd_fast.training.models import CosineModel
from cbd_fast.training.optimized_model import inference_dtype, optimized_for_inference
from cbd_fast.training.plan import ModelSpec

SECONDS = 4.0  # of measuring training, and half as long evaluation


@dataclass(frozen=True, kw_only=True)
class CacheNeeds:
    """The memory that the decoded cache needs, and what is left for it.

    Attributes:
        num_images: images to be cached.
        num_bytes: size of the block that holds them.
        free_bytes: memory that is left beside training.
        memory: whose memory that is, ``this machine`` or ``the GPU``.
    """

    num_images: int
    num_bytes: int
    free_bytes: int
    memory: str


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """Speed and memory of one kind of model.

    Attributes:
        training_rate: images per second, loading included, of all processes together.
        evaluation_rate: images per second, loading included, of all processes together.
        peak_bytes: the most memory of any process: of its GPU, or without one of the machine.
        weight_bytes: size of the model's file.
        optimizer_bytes: size of the optimizer's file.
        cache: needs of the decoded cache; None without one.
    """

    training_rate: float
    evaluation_rate: float
    peak_bytes: int
    weight_bytes: int
    optimizer_bytes: int
    cache: CacheNeeds | None


def probe_model(spec: ModelSpec, context: RunContext) -> ProbeResult:
    """Trains and evaluates a fresh model for a few seconds, as a run would; to be called on all processes.

    Raises:
        InputError: the memory does not suffice.
        RunError: too many images cannot be decoded.
    """
    config, accelerator = context.config, context.accelerator
    reset_peak_memory(accelerator.device)
    with explained_out_of_memory(spec, config, accelerator):
        train_step = fresh_train_step(spec, config, accelerator)
        with make_train_loader(spec, context) as loader:
            batches = chain.from_iterable(loader.steps(0, spec.num_steps) for _ in count())
            # batches that were ready before the clock started must not count
            rate = training_rate(train_step, batches, SECONDS, num_warm_up=config.runtime.prefetch)
            cache = cache_needs(spec, config, loader)
        model = optimized_for_inference(
            train_step.unwrapped_model, inference_dtype(config.mixed_precision, accelerator.device)
        )
        rate_of_evaluation = evaluation_rate(model, context.test_loader, accelerator, SECONDS / 2)
    peaks = accelerator.gather(torch.tensor([peak_memory_bytes(accelerator.device)], device=accelerator.device))
    optimizer_state = [value for state in train_step.optimizer.state.values() for value in state.values()]
    result = ProbeResult(
        training_rate=rate,
        evaluation_rate=rate_of_evaluation,
        peak_bytes=int(peaks.max()),
        weight_bytes=_num_bytes(train_step.unwrapped_model.state_dict().values()),
        optimizer_bytes=_num_bytes(value for value in optimizer_state if isinstance(value, Tensor)),
        cache=cache,
    )
    train_step.free()
    return result


def evaluation_rate(model: CosineModel, loader: Loader, accelerator: Accelerator, seconds: float) -> float:
    """Images per second, of all processes together, of classifying the first images of a split."""
    num_images, start_time = 0, time.perf_counter()
    with torch.inference_mode():
        for batch in loader:
            model(batch.images).logits.argmax(dim=1).tolist()  # waits for the device
            num_images += len(batch)
            if agreed(accelerator, time.perf_counter() - start_time > seconds):
                break
    rate = num_images / (time.perf_counter() - start_time)
    return float(accelerator.reduce(torch.tensor(rate, device=accelerator.device), "sum"))


def cache_needs(spec: ModelSpec, config: Config, loader: Loader) -> CacheNeeds | None:
    """What the decoded cache of a model takes; None without a cache. To be called after a few training steps.

    Raises:
        InputError: the memory left beside training does not suffice, or the cache would be of no use.
    """
    runtime, entries = config.runtime, loader.shards.index.entries
    if not (runtime.cache or runtime.cache_gb):
        return None
    num_draws = spec.num_steps * config.optimization.global_batch
    fractions = draw_fractions(spec.sampling, loader.shards.index.starts, num_draws)
    cached = choose_cached(entries, fractions, fraction=runtime.cache or None, gigabytes=runtime.cache_gb or None)
    decodes_on_gpu = loader.decoder == "dali" and loader.device.type == "cuda"
    require_possible(cached, on_gpu=runtime.cache_on_gpu, decodes_on_gpu=decodes_on_gpu)
    memory, free_bytes = "this machine", available_bytes()
    if runtime.cache_on_gpu:
        # what PyTorch has reserved but never used at once can be had back
        unused = torch.cuda.memory_reserved(loader.device) - torch.cuda.max_memory_allocated(loader.device)
        memory, free_bytes = "the GPU", torch.cuda.mem_get_info(loader.device)[0] + unused
    num_bytes = block_bytes(entries[cached])
    require_room(len(cached), num_bytes, free_bytes, memory)
    return CacheNeeds(num_images=len(cached), num_bytes=num_bytes, free_bytes=free_bytes, memory=memory)


@contextmanager
def explained_out_of_memory(spec: ModelSpec, config: Config, accelerator: Accelerator) -> Iterator[None]:
    """A block in which running out of memory becomes an error that says what would help.

    Raises:
        InputError: the memory does not suffice.
    """
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
