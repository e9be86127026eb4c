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

from cbd_fast.config.file import read_config
from cbd_fast.config.schema import Config
from cbd_fast.errors import InputError, run_command
from cbd_fast.loading.cache.decoded_cache import choose_resident, picture_bytes
from cbd_fast.loading.loader import Loader
from cbd_fast.loading.sampling.policies import draw_shares, make_order
from cbd_fast.preflight.bottlenecks import Findings, Offer, advise, mixed_rate
from cbd_fast.preflight.throughput import rehearsed_learner, training_rate
from cbd_fast.shards.reader import ShardSet
from cbd_fast.shards.sources.image_folder import folder_source
from cbd_fast.shards.writing.dataset_writer import write_dataset
from cbd_fast.shards.writing.options import Wanted
from cbd_fast.shards.writing.validate_image import PictureRules
from cbd_fast.system import available_bytes, num_cores
from cbd_fast.training.context import make_loader
from cbd_fast.training.plan import Job, plan_jobs
from cbd_fast.training.trainer import make_accelerator, open_shards
from cbd_fast.ui.console import make_console

NUM_MEASUREMENTS = 7  # that share the time, most often
NUM_SAMPLED = 384  # pictures that are measured with
NUM_COLD = 256  # pictures that are read from the disk
MIN_COLD_BYTES = 16_384  # of a picture; much of a smaller one would stay in memory
SHORT_SIDE = 256
MEMORY_SHARE = 0.5  # of what is available, for resident pictures
SHARES = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Of a loader.

    Attributes:
        rate: pictures per second.
        milliseconds: of a batch, by part.
        decoder: that was used.
    """

    rate: float
    milliseconds: dict[str, float]
    decoder: str


class Doctor:
    """Measures loading of one split of shards; every measurement takes about ``seconds``.

    Attributes:
        measured: pictures per second, by what was measured.
    """

    def __init__(self, shards: ShardSet, config: Config, seconds: float, work: Path) -> None:
        self._shards, self._config, self._seconds, self._work = shards, config, seconds, work
        self.measured: dict[str, float] = {}
        self._sample = self._written("sample", PictureRules(verify="header"))

    def findings(self, samplings: Mapping[str, str], training: Mapping[str, float]) -> Findings:
        """Measures what there is to measure.

        Args:
            samplings: policy by stage.
            training: pictures per second that each stage can take, by stage.
        """
        runtime = self._config.runtime
        now = self._measure("from files, settings as they are", self._sample)
        resident = self._measure("resident pictures", self._sample, resident=1.0).rate
        kept = {stage: self._served(sampling, None) for stage, sampling in samplings.items()}
        offers = []

        def offer(what: str, files: float, served: Mapping[str, float] = kept) -> None:
            rates = {stage: mixed_rate(share, files, resident) for stage, share in served.items()}
            offers.append(Offer(what=what, rates=rates))

        other = "torch" if now.decoder == "dali" else "dali"
        with suppress(InputError):  # it is not installed
            what = f"decoder={other}"
            offer(what, self._measure(f"from files, {what}", self._sample, decoder=other).rate)
        if runtime.num_threads not in (None, num_cores()):
            rate = self._measure("from files, all cores", self._sample, num_threads=None).rate
            offer("num_threads=null, a thread for each core", rate)
        if self._median_short_side() > SHORT_SIDE >= self._config.data.image_size:
            smaller = self._written("smaller", PictureRules(verify="header", short_side=SHORT_SIDE))
            rate = self._measure(f"from files, shrunk to short side {SHORT_SIDE}", smaller).rate
            offer(f"shards made with --short-side {SHORT_SIDE} (boxes then have fewer pixels)", rate)
        if (share := self._share_that_fits(samplings.values())) is not None:
            served = {stage: self._served(sampling, share) for stage, sampling in samplings.items()}
            gigabytes = max(self._num_bytes(sampling, share) for sampling in samplings.values()) / 1e9
            offer(f"resident={share:g} ({gigabytes:,.3g} GB of memory)", now.rate, served)
        return Findings(
            loading={stage: mixed_rate(served, now.rate, resident) for stage, served in kept.items()},
            training=training,
            milliseconds=now.milliseconds,
            cold_reading=self._cold_reading(),
            offers=tuple(offers),
        )

    def _written(self, name: str, rules: PictureRules) -> Path:
        """Shards of pictures as class-balanced sampling draws them, made for this purpose."""
        pictures = self._work / "pictures" / "all"
        if not pictures.exists():
            pictures.mkdir(parents=True)
            order = make_order("class_balanced", self._shards.index.starts, seed=0)
            rows = np.setdiff1d(order(np.arange(NUM_SAMPLED)), self._shards.quarantined)
            for row in rows.tolist():
                extension = Path(self._shards.name(row)).suffix
                with suppress(OSError):  # a bad picture
                    (pictures / f"{row}{extension}").write_bytes(self._shards.read(row).tobytes())
        out = self._work / name
        wanted = Wanted(rules=rules, max_bad_share=1.0)  # the loader passes over bad pictures too
        write_dataset(folder_source({"train": pictures.parent}), out, wanted, num_workers=num_cores())
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
            before, num_pictures, began = loader.stats(), 0, time.perf_counter()
            while (seconds := time.perf_counter() - began) < self._seconds:
                num_pictures += len(next(batches))
            if loader.device.type == "cuda":
                torch.cuda.synchronize()
            self.measured[what] = num_pictures / seconds
            return Measurement(
                rate=num_pictures / seconds,
                milliseconds=loader.stats().since(before).milliseconds_per_batch(),
                decoder=loader.decoder,
            )

    def _cold_reading(self) -> float | None:
        """Pictures per second from files, after the system was asked to forget these pictures: whole pages only."""
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
            with suppress(OSError):  # a bad picture
                self._shards.read(row)
        rate = len(rows) / (time.perf_counter() - began)
        self.measured["reading alone, from the disk"] = rate
        return rate

    def _chosen(self, sampling: str, share: float | None) -> np.ndarray:
        """Rows that would be resident; with ``share=None`` those that the settings ask for."""
        index, runtime = self._shards.index, self._config.runtime
        shares = draw_shares(sampling, index.starts)
        if share is not None:
            return choose_resident(index.rows, shares, share=share)
        return choose_resident(index.rows, shares, share=runtime.resident, gigabytes=runtime.resident_gb)

    def _served(self, sampling: str, share: float | None) -> float:
        """Share of the draws that resident pictures would serve."""
        index, chosen = self._shards.index, self._chosen(sampling, share)
        return float(draw_shares(sampling, index.starts)[index.rows["label"][chosen]].sum())

    def _num_bytes(self, sampling: str, share: float) -> int:
        return int(picture_bytes(self._shards.index.rows[self._chosen(sampling, share)]).sum())

    def _share_that_fits(self, samplings: Iterable[str]) -> float | None:
        """The largest share of the pictures that takes no more than half of the memory that is left."""
        room = available_bytes() * MEMORY_SHARE
        fitting = (share for share in SHARES if max(self._num_bytes(sampling, share) for sampling in samplings) <= room)
        return max(fitting, default=None)

    def _median_short_side(self) -> float:
        rows = self._shards.index.rows
        return float(np.median(np.minimum(rows["width"], rows["height"])))


def main() -> None:
    """Measures and reports."""
    arguments = parse_arguments()
    shards = ShardSet(arguments.shards, "train")
    config = config_of(arguments, shards)
    console, seconds = make_console(), arguments.seconds / NUM_MEASUREMENTS
    samplings, training = {"loading": "class_balanced"}, {}
    jobs = stages_of(config, shards) if arguments.config else {}
    with tempfile.TemporaryDirectory() as work, console.status("measuring"):
        doctor = Doctor(shards, config, seconds, Path(work))
        if jobs:
            samplings = {stage: job.sampling for stage, job in jobs.items()}
            training = dict(training_rates(jobs, config, seconds))
        findings = doctor.findings(samplings, training)
    rates = doctor.measured | {f"training, {stage}": rate for stage, rate in training.items()}
    table = Table("measured", "pictures/s", title=f"{arguments.shards}: {len(shards):,} pictures, {num_cores()} cores")
    table.columns[1].justify = "right"
    for what, rate in rates.items():
        table.add_row(what, f"{rate:,.0f}")
    console.print(table)
    parts = ", ".join(f"{name} {value:.0f}" for name, value in findings.milliseconds.items())
    console.print(f"Milliseconds of a batch from files, all threads together: {parts}", highlight=False, soft_wrap=True)
    for line in advise(findings):
        console.print(f"- {line}", highlight=False, markup=False, soft_wrap=True)


def config_of(arguments: argparse.Namespace, shards: ShardSet) -> Config:
    """The run's settings, or the defaults."""
    if arguments.config:
        config = read_config(arguments.config, [*arguments.overrides, f"data.shards={arguments.shards}"])
        open_shards(config)  # says what training on these shards would refuse
        return config
    if arguments.overrides:
        raise InputError(f"{arguments.overrides[0]!r}: settings need --config")
    data = {"shards": str(arguments.shards), "num_classes": max(2, shards.num_classes)}
    return Config.model_validate({"output": "", "data": data, "optimization": {"steps": 1}})


def stages_of(config: Config, shards: ShardSet) -> dict[str, Job]:
    """The stages that are asked for, each with one of its models."""
    jobs = plan_jobs(config, shards)
    return {f"stage {job.stage}": job for job in jobs if config.stages in ("both", job.stage)}


def training_rates(jobs: Mapping[str, Job], config: Config, seconds: float) -> Iterator[tuple[str, float]]:
    """Pictures per second that each stage of a run takes when it waits for nothing."""
    accelerator = make_accelerator(config)
    with make_loader(config, accelerator, split="train", sampling="class_balanced") as loader:
        batch = loader.batch(0)
    for stage, job in jobs.items():
        yield stage, training_rate(rehearsed_learner(job, config, accelerator), repeat(batch), seconds)
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
