"""What a run's models have in common: settings, processes, loaders, the run's folder and the person who watches."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from cbd_fast.config.schema import Config
from cbd_fast.errors import InputError, RunError, first_line
from cbd_fast.loading.loader import Loader
from cbd_fast.processes import check_launcher, env_world_size
from cbd_fast.resources import num_cores
from cbd_fast.shards.reader import ShardReader
from cbd_fast.training.peers import TIMEOUT
from cbd_fast.training.plan import ModelSpec
from cbd_fast.training.run_dir import RunDir
from cbd_fast.training.selection import selection_interval
from cbd_fast.training.stopping import Stops
from cbd_fast.training.trackers import tracking_options
from cbd_fast.ui.dashboard import Dashboard


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """What every model of a run is trained with.

    Attributes:
        config: settings of the run.
        accelerator: joins the processes.
        run_dir: writes the run's folder.
        dashboard: shows the person who watches what happens.
        test_loader: the split that results are of.
        val_loader: the split that the best weights are chosen on; None where the last weights are taken.
        evaluate_every: steps between two evaluations; None evaluates at the end only.
        on_bad_image: told name and reason of an image that cannot be used.
        stops: says when all processes stop.
    """

    config: Config
    accelerator: Accelerator
    run_dir: RunDir
    dashboard: Dashboard
    test_loader: Loader
    val_loader: Loader | None
    evaluate_every: int | None
    on_bad_image: Callable[[str, str], None]
    stops: Stops


@contextmanager
def open_context(
    config: Config,
    shards: ShardReader,
    accelerator: Accelerator,
    run_dir: RunDir,
    dashboard: Dashboard,
    stops: Stops | None = None,
) -> Iterator[RunContext]:
    """Opens the splits to evaluate on, whose shards and decoder are found to be usable before anything is written."""

    def on_bad_image(name: str, reason: str) -> None:
        run_dir.bad_image(name, reason)
        dashboard.note(f"bad image {name}: {reason}")

    def open_loader(split: str) -> Loader:
        augmentation = config.data.augmentation.for_test()
        chosen = {"sampling": "sequential", "augmentation": augmentation, "on_bad_image": on_bad_image}
        return opened.enter_context(make_loader(config, accelerator, split=split, **chosen))

    interval = selection_interval(config, shards)
    with ExitStack() as opened:
        yield RunContext(
            config=config,
            accelerator=accelerator,
            run_dir=run_dir,
            dashboard=dashboard,
            test_loader=open_loader("test"),
            val_loader=open_loader("val") if interval else None,
            evaluate_every=interval or config.runtime.evaluate_every,
            on_bad_image=on_bad_image,
            stops=stops or Stops(),
        )


def open_shards(config: Config) -> ShardReader:
    """Opens the training split and checks that the config is made for it."""
    shards = ShardReader(config.data.shards, "train")
    if shards.num_classes != config.data.num_classes:
        raise InputError(
            f"data.num_classes: {config.data.num_classes}, but {config.data.shards} has {shards.num_classes} "
            "classes; use the config that goes with these shards"
        )
    if "test" not in shards.manifest.splits:
        raise InputError(f"{config.data.shards}: has no test split to evaluate on; make the shards with --test")
    num_processes = env_world_size()
    num_parts = num_processes * config.optimization.accumulation
    if config.optimization.global_batch // num_parts < 2:
        raise InputError(
            f"optimization.global_batch: {config.optimization.global_batch} leaves each of {num_processes} processes x "
            f"accumulation {config.optimization.accumulation} fewer than 2 images, too few for batch-norm"
        )
    if config.optimization.global_batch % num_parts:
        raise InputError(
            f"optimization.global_batch: {config.optimization.global_batch} is not a multiple of {num_processes} "
            f"processes x accumulation {config.optimization.accumulation} = {num_parts}"
        )
    return shards


def make_accelerator(config: Config) -> Accelerator:
    """Joins the processes; on the CPU where there is no accelerator."""
    check_launcher()
    torch.backends.cudnn.benchmark = True  # every batch has the same shape
    try:
        accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            gradient_accumulation_steps=config.optimization.accumulation,
            cpu=not torch.cuda.is_available(),
            kwargs_handlers=[InitProcessGroupKwargs(timeout=TIMEOUT)],
            **tracking_options(config),
        )
    except torch.distributed.DistError as error:
        raise RunError(
            f"the {env_world_size()} processes of the run could not join ({first_line(error)}); look at what the "
            "others say, and start all of them"
        ) from error
    joined = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    if joined != accelerator.num_processes:
        raise InputError(
            f"{joined} processes are joined, but Accelerate knows {accelerator.num_processes}: each would train alone "
            "into the same folder; start them with accelerate launch or torchrun"
        )
    if accelerator.device.type == "cpu":
        # the launcher has set one thread, whatever the machine has
        torch.set_num_threads(config.runtime.num_threads or num_cores())
    if config.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        # Accelerate would silently compute in float32 here; PyTorch itself does know fp16 on the CPU
        accelerator.native_amp, accelerator.scaler = True, torch.amp.GradScaler("cpu")
    return accelerator


def describe_run(config: Config, shards: ShardReader, accelerator: Accelerator) -> str:
    """A run in one line."""
    device = torch.cuda.get_device_name() if accelerator.device.type == "cuda" else "CPU"
    precision = "float32" if config.mixed_precision == "no" else config.mixed_precision
    return (
        f"{config.output}: {config.model.backbone} on {config.data.shards} ({len(shards):,} images, "
        f"{shards.num_classes:,} classes), {accelerator.num_processes} x {device}, {precision}"
    )


def make_loader(config: Config, accelerator: Accelerator, **chosen: Any) -> Loader:
    """A loader of the run's shards, as its settings and this process want it; ``chosen`` says of which images."""
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
        max_bad_fraction=config.runtime.max_bad_fraction,
        **chosen,
    )


def make_train_loader(spec: ModelSpec, context: RunContext, **chosen: Any) -> Loader:
    """A loader of the images that a model learns from."""
    return make_loader(
        context.config,
        context.accelerator,
        split="train",
        sampling=spec.sampling,
        seed=spec.seed,
        augmentation=spec.augmentation,
        total_steps=spec.num_steps,
        on_bad_image=context.on_bad_image,
        **chosen,
    )
