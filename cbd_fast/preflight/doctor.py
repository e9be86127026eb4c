"""Loading and training of this machine, measured for half a minute: what the advice on bottlenecks rests on."""

import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cbd_fast.config.schema import Config
from cbd_fast.errors import InputError
from cbd_fast.loading.cache.decoded_cache import choose_cached, image_bytes
from cbd_fast.loading.loader import Loader
from cbd_fast.loading.sampling.policies import draw_fractions, make_order
from cbd_fast.preflight.bottlenecks import Findings, Suggestion, mixed_rate
from cbd_fast.preflight.throughput import fresh_train_step, training_rate
from cbd_fast.resources import available_bytes, num_cores
from cbd_fast.shards.reader import ShardReader
from cbd_fast.shards.sources.image_folder import folder_source
from cbd_fast.shards.writing.dataset_writer import write_dataset
from cbd_fast.shards.writing.options import WriteOptions
from cbd_fast.shards.writing.validate_image import ImageRules
from cbd_fast.training.context import make_accelerator, make_loader
from cbd_fast.training.plan import ModelSpec, plan_models

MAX_MEASUREMENTS = 7  # that share the time
NUM_SAMPLED = 384  # images that loading is measured with
NUM_COLD = 256  # images that are read from the disk
MIN_COLD_BYTES = 16_384  # median size of an image; much of smaller ones would stay in memory
SHORT_SIDE = 256
MEMORY_FRACTION = 0.5  # of what is available, for the decoded cache
CACHE_FRACTIONS = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0)


@dataclass(frozen=True, kw_only=True)
class LoaderSpeed:
    """Speed of a loader.

    Attributes:
        rate: images per second.
        batch_milliseconds: time of a batch by part of the work; the sum over all threads.
        decoder: name of the decoder that was used.
    """

    rate: float
    batch_milliseconds: dict[str, float]
    decoder: str


def diagnose(
    shards: ShardReader, config: Config, seconds: float, specs: Mapping[str, ModelSpec] | None = None
) -> tuple[dict[str, float], Findings]:
    """Measures loading and, for the stages of a run, training.

    Args:
        shards: the training split.
        config: settings of the run.
        seconds: duration of all measurements together, about.
        specs: one model of each stage; without any, loading alone is measured, with class-balanced sampling.

    Returns:
        Images per second by what was measured, and what follows from them.
    """
    seconds /= MAX_MEASUREMENTS
    samplings = {stage: spec.sampling for stage, spec in specs.items()} if specs else {"loading": "class_balanced"}
    with tempfile.TemporaryDirectory() as work_folder:
        doctor = LoaderDoctor(shards, config, seconds, Path(work_folder))
        rates = dict(stage_training_rates(specs, config, seconds)) if specs else {}
        findings = doctor.findings(samplings, rates)
    return doctor.measured | {f"training, {stage}": rate for stage, rate in rates.items()}, findings


class LoaderDoctor:
    """Measurements of loading, on a sample of one split's images.

    Attributes:
        measured: images per second, by what was measured.
    """

    def __init__(self, shards: ShardReader, config: Config, seconds: float, work_folder: Path) -> None:
        """Writes the sample.

        Args:
            shards: the split.
            config: settings of the run.
            seconds: duration of each measurement, about.
            work_folder: where samples of the images go.
        """
        self._shards, self._config, self._seconds, self._work_folder = shards, config, seconds, work_folder
        self.measured: dict[str, float] = {}
        self._sample = self._write_sample("sample", ImageRules(verify="header"))

    def findings(self, samplings: Mapping[str, str], training_rates: Mapping[str, float]) -> Findings:
        """Measures loading with the settings as they are, and with each change that could make it faster.

        Args:
            samplings: policy by stage.
            training_rates: images per second that training takes, by stage.
        """
        now = self._measure("from files, settings as they are", self._sample)
        cache_rate = self._measure("cached images", self._sample, cache=1.0).rate
        cached = {stage: self._cached_draws(sampling, None) for stage, sampling in samplings.items()}
        suggestions = [
            Suggestion(change=change, loading_rates=_mixed_rates(cached, rate, cache_rate))
            for change, rate in self._rates_of_changes(now.decoder)
        ]
        if (fraction := self._largest_cache_fraction(samplings.values())) is not None:
            cached_then = {stage: self._cached_draws(sampling, fraction) for stage, sampling in samplings.items()}
            gigabytes = max(self._cache_bytes(sampling, fraction) for sampling in samplings.values()) / 1e9
            change = f"cache={fraction:g} ({gigabytes:,.3g} GB of memory)"
            rates = _mixed_rates(cached_then, now.rate, cache_rate)
            suggestions.append(Suggestion(change=change, loading_rates=rates))
        return Findings(
            loading_rates=_mixed_rates(cached, now.rate, cache_rate),
            training_rates=training_rates,
            batch_milliseconds=now.batch_milliseconds,
            cold_reading_rate=self._cold_reading_rate(),
            suggestions=tuple(suggestions),
        )

    def _rates_of_changes(self, decoder: str) -> Iterator[tuple[str, float]]:
        """Changes that make decoding faster, and images per second from files with each of them.

        Args:
            decoder: name of the decoder that is used now.
        """
        other = "torch" if decoder == "dali" else "dali"
        with suppress(InputError):  # it is not installed
            change = f"decoder={other}"
            yield change, self._measure(f"from files, {change}", self._sample, decoder=other).rate
        if self._config.runtime.num_threads not in (None, num_cores()):
            rate = self._measure("from files, all cores", self._sample, num_threads=None).rate
            yield "num_threads=null, a thread for each core", rate
        if self._median_short_side() > SHORT_SIDE >= self._config.data.image_size:
            smaller = self._write_sample("smaller", ImageRules(verify="header", short_side=SHORT_SIDE))
            rate = self._measure(f"from files, shrunk to short side {SHORT_SIDE}", smaller).rate
            yield f"shards made with --short-side {SHORT_SIDE} (boxes then have fewer pixels)", rate

    def _write_sample(self, name: str, rules: ImageRules) -> Path:
        """Shards of images as class-balanced sampling draws them."""
        images = self._work_folder / "images" / "all"
        if not images.exists():
            images.mkdir(parents=True)
            order = make_order("class_balanced", self._shards.index.starts, seed=0)
            indices = np.setdiff1d(order(np.arange(NUM_SAMPLED)), self._shards.quarantined)
            for index in indices.tolist():
                extension = Path(self._shards.name(index)).suffix
                with suppress(OSError):  # a bad image
                    (images / f"{index}{extension}").write_bytes(self._shards.read(index).tobytes())
        out = self._work_folder / name
        options = WriteOptions(rules=rules, max_bad_fraction=1.0)  # the loader replaces bad images too
        write_dataset(folder_source({"train": images.parent}), out, options, num_workers=num_cores())
        return out

    def _measure(self, what: str, shards: Path, **changed: Any) -> LoaderSpeed:
        runtime, data = self._config.runtime, self._config.data
        options = {"decoder": runtime.decoder, "num_threads": runtime.num_threads, "prefetch": runtime.prefetch}
        with Loader(
            shards,
            batch_size=min(self._config.optimization.global_batch, NUM_SAMPLED),
            image_size=data.image_size,
            augmentation=data.augmentation,
            rank=0,
            world_size=1,
            **(options | changed),
        ) as loader:
            batches = loader.steps(0, 10**9)
            for _ in range(runtime.prefetch + 1):
                next(batches)
            before, num_images, start_time = loader.stats(), 0, time.perf_counter()
            while (seconds := time.perf_counter() - start_time) < self._seconds:
                num_images += len(next(batches))
            if loader.device.type == "cuda":
                torch.cuda.synchronize()
            self.measured[what] = num_images / seconds
            return LoaderSpeed(
                rate=num_images / seconds,
                batch_milliseconds=loader.stats().since(before).milliseconds_per_batch(),
                decoder=loader.decoder,
            )

    def _cold_reading_rate(self) -> float | None:
        """Images per second from files, after the system was asked to forget these images: whole pages only."""
        if np.median(self._shards.index.entries["size"]) < MIN_COLD_BYTES:
            return None
        rng = np.random.default_rng(0)
        indices = rng.choice(len(self._shards), min(NUM_COLD, len(self._shards)), replace=False)
        self._shards.forget(indices.tolist())
        start_time = time.perf_counter()
        self._shards.read_ahead(indices.tolist())
        for index in indices.tolist():
            with suppress(OSError):  # a bad image
                self._shards.read(index)
        rate = len(indices) / (time.perf_counter() - start_time)
        self.measured["reading alone, from the disk"] = rate
        return rate

    def _cached_indices(self, sampling: str, fraction: float | None) -> np.ndarray:
        """Images that the cache would hold; with ``fraction=None`` those that the settings ask for."""
        index, runtime = self._shards.index, self._config.runtime
        fractions = draw_fractions(sampling, index.starts)
        if fraction is not None:
            return choose_cached(index.entries, fractions, fraction=fraction)
        return choose_cached(index.entries, fractions, fraction=runtime.cache, gigabytes=runtime.cache_gb)

    def _cached_draws(self, sampling: str, fraction: float | None) -> float:
        """Fraction of the draws that the cache would serve."""
        index, cached = self._shards.index, self._cached_indices(sampling, fraction)
        return float(draw_fractions(sampling, index.starts)[index.entries["label"][cached]].sum())

    def _cache_bytes(self, sampling: str, fraction: float) -> int:
        return int(image_bytes(self._shards.index.entries[self._cached_indices(sampling, fraction)]).sum())

    def _largest_cache_fraction(self, samplings: Iterable[str]) -> float | None:
        """The largest fraction of the images that takes no more than half of the memory that is left."""
        room = available_bytes() * MEMORY_FRACTION
        fitting = (
            fraction
            for fraction in CACHE_FRACTIONS
            if max(self._cache_bytes(sampling, fraction) for sampling in samplings) <= room
        )
        return max(fitting, default=None)

    def _median_short_side(self) -> float:
        entries = self._shards.index.entries
        return float(np.median(np.minimum(entries["width"], entries["height"])))


def specs_by_stage(config: Config, shards: ShardReader) -> dict[str, ModelSpec]:
    """One model of each stage that the settings ask for."""
    specs = plan_models(config, shards)
    return {spec.stage: spec for spec in specs if config.stages in ("all", spec.stage)}


def stage_training_rates(specs: Mapping[str, ModelSpec], config: Config, seconds: float) -> Iterator[tuple[str, float]]:
    """Images per second that training takes in each stage when it never waits for a batch."""
    accelerator = make_accelerator(config)
    with make_loader(config, accelerator, split="train", sampling="class_balanced") as loader:
        batch = loader.batch(0)
    for stage, spec in specs.items():
        yield stage, training_rate(fresh_train_step(spec, config, accelerator), repeat(batch), seconds)
        accelerator.free_memory()


def _mixed_rates(cached_draws: Mapping[str, float], file_rate: float, cache_rate: float) -> dict[str, float]:
    return {stage: mixed_rate(fraction, file_rate, cache_rate) for stage, fraction in cached_draws.items()}
