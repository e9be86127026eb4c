"""Measures this machine for half a minute and says what limits training here, and which setting to change.

python -m cbd_fast.doctor --shards DIR [--config FILE [key=value ...]]

Without --config it looks at loading alone, with class-balanced sampling; with it at both stages of that run.
"""

import argparse
import os
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
from rich.table import Table

from cbd_fast.cli.command import run_command
from cbd_fast.config.file import read_config
from cbd_fast.config.schema import Config
from cbd_fast.errors import InputError
from cbd_fast.loading.cache.decoded_cache import choose_cached, image_bytes
from cbd_fast.loading.loader import Loader
from cbd_fast.loading.sampling.policies import draw_fractions, make_order
from cbd_fast.preflight.bottlenecks import Findings, Suggestion, advise, mixed_rate
from cbd_fast.preflight.throughput import fresh_train_step, training_rate
from cbd_fast.shards.reader import ShardReader
from cbd_fast.shards.sources.image_folder import folder_source
from cbd_fast.shards.writing.dataset_writer import write_dataset
from cbd_fast.shards.writing.options import WriteOptions
from cbd_fast.shards.writing.validate_image import ImageRules
from cbd_fast.system import available_bytes, num_cores
from cbd_fast.training.context import make_loader
from cbd_fast.training.plan import ModelSpec, plan_models
from cbd_fast.training.trainer import make_accelerator, open_shards
from cbd_fast.ui.console import make_console

NUM_MEASUREMENTS = 7  # that share the time, most often
NUM_SAMPLED = 384  # images that are measured with
NUM_COLD = 256  # images that are read from the disk
MIN_COLD_BYTES = 16_384  # of an image; much of a smaller one would stay in memory
SHORT_SIDE = 256
MEMORY_FRACTION = 0.5  # of what is available, for cached images
FRACTIONS = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Of a loader.

    Attributes:
        rate: images per second.
        milliseconds: of a batch, by part.
        decoder: that was used.
    """

    rate: float
    milliseconds: dict[str, float]
    decoder: str


class Doctor:
    """Measures loading of one split of shards; every measurement takes about ``seconds``.

    Attributes:
        measured: images per second, by what was measured.
    """

    def __init__(self, shards: ShardReader, config: Config, seconds: float, work: Path) -> None:
        self._shards, self._config, self._seconds, self._work = shards, config, seconds, work
        self.measured: dict[str, float] = {}
        self._sample = self._written("sample", ImageRules(verify="header"))

    def findings(self, samplings: Mapping[str, str], training: Mapping[str, float]) -> Findings:
        """Measures what there is to measure.

        Args:
            samplings: policy by stage.
            training: images per second that each stage can take, by stage.
        """
        runtime = self._config.runtime
        now = self._measure("from files, settings as they are", self._sample)
        cache = self._measure("cached images", self._sample, cache=1.0).rate
        kept = {stage: self._served(sampling, None) for stage, sampling in samplings.items()}
        suggestions = []

        def offer(what: str, files: float, served: Mapping[str, float] = kept) -> None:
            rates = {stage: mixed_rate(fraction, files, cache) for stage, fraction in served.items()}
            suggestions.append(Suggestion(what=what, rates=rates))

        other = "torch" if now.decoder == "dali" else "dali"
        with suppress(InputError):  # it is not installed
            what = f"decoder={other}"
            offer(what, self._measure(f"from files, {what}", self._sample, decoder=other).rate)
        if runtime.num_threads not in (None, num_cores()):
            rate = self._measure("from files, all cores", self._sample, num_threads=None).rate
            offer("num_threads=null, a thread for each core", rate)
        if self._median_short_side() > SHORT_SIDE >= self._config.data.image_size:
            smaller = self._written("smaller", ImageRules(verify="header", short_side=SHORT_SIDE))
            rate = self._measure(f"from files, shrunk to short side {SHORT_SIDE}", smaller).rate
            offer(f"shards made with --short-side {SHORT_SIDE} (boxes then have fewer pixels)", rate)
        if (fraction := self._fraction_that_fits(samplings.values())) is not None:
            served = {stage: self._served(sampling, fraction) for stage, sampling in samplings.items()}
            gigabytes = max(self._num_bytes(sampling, fraction) for sampling in samplings.values()) / 1e9
            offer(f"cache={fraction:g} ({gigabytes:,.3g} GB of memory)", now.rate, served)
        return Findings(
            loading={stage: mixed_rate(served, now.rate, cache) for stage, served in kept.items()},
            training=training,
            milliseconds=now.milliseconds,
            cold_reading=self._cold_reading(),
            suggestions=tuple(suggestions),
        )

    def _written(self, name: str, rules: ImageRules) -> Path:
        """Shards of images as class-balanced sampling draws them, made for this purpose."""
        images = self._work / "images" / "all"
        if not images.exists():
            images.mkdir(parents=True)
            order = make_order("class_balanced", self._shards.index.starts, seed=0)
            rows = np.setdiff1d(order(np.arange(NUM_SAMPLED)), self._shards.quarantined)
            for row in rows.tolist():
                extension = Path(self._shards.name(row)).suffix
                with suppress(OSError):  # a bad image
                    (images / f"{row}{extension}").write_bytes(self._shards.read(row).tobytes())
        out = self._work / name
        options = WriteOptions(rules=rules, max_bad_fraction=1.0)  # the loader passes over bad images too
        write_dataset(folder_source({"train": images.parent}), out, options, num_workers=num_cores())
        return out

    def _measure(self, what: str, shards: Path, **changed: Any) -> Measurement:
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
            before, num_images, began = loader.stats(), 0, time.perf_counter()
            while (seconds := time.perf_counter() - began) < self._seconds:
                num_images += len(next(batches))
            if loader.device.type == "cuda":
                torch.cuda.synchronize()
            self.measured[what] = num_images / seconds
            return Measurement(
                rate=num_images / seconds,
                milliseconds=loader.stats().since(before).milliseconds_per_batch(),
                decoder=loader.decoder,
            )

    def _cold_reading(self) -> float | None:
        """Images per second from files, after the system was asked to forget these images: whole pages only."""
        if np.median(self._shards.index.rows["size"]) < MIN_COLD_BYTES:
            return None
        rng = np.random.default_rng(0)
        rows = rng.choice(len(self._shards), min(NUM_COLD, len(self._shards)), replace=False)
        for place in self._shards.index.rows[rows]:
            with open(self._shards.paths[int(place["shard"])], "rb") as file:
                first, size = int(place["offset"]), int(place["size"])
                os.posix_fadvise(file.fileno(), first, size, os.POSIX_FADV_DONTNEED)
        began = time.perf_counter()
        self._shards.read_ahead(rows.tolist())
        for row in rows.tolist():
            with suppress(OSError):  # a bad image
                self._shards.read(row)
        rate = len(rows) / (time.perf_counter() - began)
        self.measured["reading alone, from the disk"] = rate
        return rate

    def _chosen(self, sampling: str, fraction: float | None) -> np.ndarray:
        """Rows that would be cached; with ``fraction=None`` those that the settings ask for."""
        index, runtime = self._shards.index, self._config.runtime
        fractions = draw_fractions(sampling, index.starts)
        if fraction is not None:
            return choose_cached(index.rows, fractions, fraction=fraction)
        return choose_cached(index.rows, fractions, fraction=runtime.cache, gigabytes=runtime.cache_gb)

    def _served(self, sampling: str, fraction: float | None) -> float:
        """Fraction of the draws that cached images would serve."""
        index, chosen = self._shards.index, self._chosen(sampling, fraction)
        return float(draw_fractions(sampling, index.starts)[index.rows["label"][chosen]].sum())

    def _num_bytes(self, sampling: str, fraction: float) -> int:
        return int(image_bytes(self._shards.index.rows[self._chosen(sampling, fraction)]).sum())

    def _fraction_that_fits(self, samplings: Iterable[str]) -> float | None:
        """The largest fraction of the images that takes no more than half of the memory that is left."""
        room = available_bytes() * MEMORY_FRACTION
        fitting = (
            fraction
            for fraction in FRACTIONS
            if max(self._num_bytes(sampling, fraction) for sampling in samplings) <= room
        )
        return max(fitting, default=None)

    def _median_short_side(self) -> float:
        rows = self._shards.index.rows
        return float(np.median(np.minimum(rows["width"], rows["height"])))


def main() -> None:
    """Measures and reports."""
    arguments = parse_arguments()
    shards = ShardReader(arguments.shards, "train")
    config = config_of(arguments, shards)
    console, seconds = make_console(), arguments.seconds / NUM_MEASUREMENTS
    samplings, training = {"loading": "class_balanced"}, {}
    specs = stages_of(config, shards) if arguments.config else {}
    with tempfile.TemporaryDirectory() as work, console.status("measuring"):
        doctor = Doctor(shards, config, seconds, Path(work))
        if specs:
            samplings = {stage: spec.sampling for stage, spec in specs.items()}
            training = dict(training_rates(specs, config, seconds))
        findings = doctor.findings(samplings, training)
    rates = doctor.measured | {f"training, {stage}": rate for stage, rate in training.items()}
    table = Table("measured", "images/s", title=f"{arguments.shards}: {len(shards):,} images, {num_cores()} cores")
    table.columns[1].justify = "right"
    for what, rate in rates.items():
        table.add_row(what, f"{rate:,.0f}")
    console.print(table)
    parts = ", ".join(f"{name} {value:.0f}" for name, value in findings.milliseconds.items())
    console.print(f"Milliseconds of a batch from files, all threads together: {parts}", highlight=False, soft_wrap=True)
    for line in advise(findings):
        console.print(f"- {line}", highlight=False, markup=False, soft_wrap=True)


def config_of(arguments: argparse.Namespace, shards: ShardReader) -> Config:
    """The run's settings, or the defaults."""
    if arguments.config:
        config = read_config(arguments.config, [*arguments.overrides, f"data.shards={arguments.shards}"])
        open_shards(config)  # says what training on these shards would refuse
        return config
    if arguments.overrides:
        raise InputError(f"{arguments.overrides[0]!r}: settings need --config")
    data = {"shards": str(arguments.shards), "num_classes": max(2, shards.num_classes)}
    return Config.model_validate({"output": "", "data": data, "optimization": {"steps": 1}})


def stages_of(config: Config, shards: ShardReader) -> dict[str, ModelSpec]:
    """The stages that are asked for, each with one of its models."""
    specs = plan_models(config, shards)
    return {spec.stage: spec for spec in specs if config.stages in ("all", spec.stage)}


def training_rates(specs: Mapping[str, ModelSpec], config: Config, seconds: float) -> Iterator[tuple[str, float]]:
    """Images per second that each stage of a run takes when it waits for nothing."""
    accelerator = make_accelerator(config)
    with make_loader(config, accelerator, split="train", sampling="class_balanced") as loader:
        batch = loader.batch(0)
    for stage, spec in specs.items():
        yield stage, training_rate(fresh_train_step(spec, config, accelerator), repeat(batch), seconds)
        accelerator.free_memory()


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="cbd_fast.doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", type=Path, required=True, metavar="DIR")
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings of a run, in YAML")
    parser.add_argument("--seconds", type=float, default=30, metavar="S", help="of measuring (default 30)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the file's")
    arguments = parser.parse_args()
    if not arguments.seconds > 0:
        raise InputError(f"--seconds {arguments.seconds:g}: must be above 0")
    return arguments


if __name__ == "__main__":
    run_command(main)
