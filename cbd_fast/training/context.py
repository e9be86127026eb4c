"""What a run's models have in common: settings, processes, loaders, records and the person who watches."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator

from cbd_fast.config.schema import Config
from cbd_fast.loading.loader import Loader
from cbd_fast.training.plan import Job
from cbd_fast.training.run_dir import Records
from cbd_fast.ui.dashboard import Dashboard


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
