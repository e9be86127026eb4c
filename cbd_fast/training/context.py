"""What a run's models have in common: settings, processes, loaders, records and the person who watches."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator

from cbd_fast.config.schema import Config
from cbd_fast.loading.loader import Loader
from cbd_fast.training.plan import ModelSpec
from cbd_fast.training.run_dir import RunDir
from cbd_fast.ui.dashboard import Dashboard


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """What a stage is trained with: settings, processes, the run's records and the person who watches."""

    config: Config
    accelerator: Accelerator
    run_dir: RunDir
    dashboard: Dashboard
    test_loader: Loader
    val_loader: Loader | None  # if the best weights on the validation split are taken
    evaluate_every: int | None  # steps; None: only at the end
    on_bad_image: Callable[[str, str], None]  # records and shows place and reason of an image that cannot be used


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
