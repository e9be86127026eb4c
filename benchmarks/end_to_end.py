"""How much of its speed does training keep on real shards, beside one constant batch that is already on the device?

    python benchmarks/end_to_end.py --shards DIR [--backbones resnet50,resnet18] [--teachers 0,1,4] [--batch-size 128]
        [--precision bf16] [--steps 100] [--rounds 5] [--decoder auto] [--out FILE.json]

Every case is a stage as the trainer carries it out, with its losses, optimizer, step and loader; only the weights are
fresh and nothing is logged. 0 teachers is stage one with instance sampling, others are stage two with class-balanced
sampling. Constant batch and shards take turns, so that whatever else the machine does meets both alike.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import release_memory
from arguments import names, teacher_counts
from report import machine_and_versions, print_table, write_json

from cbd_fast import Batch
from cbd_fast.cli.command import run_command
from cbd_fast.cli.shard_options import positive_int
from cbd_fast.config.schema import Config
from cbd_fast.errors import InputError
from cbd_fast.loading.batch_decoder import DECODERS
from cbd_fast.preflight.throughput import fresh_train_step
from cbd_fast.shards.reader import ShardReader
from cbd_fast.training.context import make_loader
from cbd_fast.training.models import BACKBONES
from cbd_fast.training.plan import ModelSpec, plan_models
from cbd_fast.training.train_step import TrainStep
from cbd_fast.training.trainer import make_accelerator

GOALS = {"resnet50": 0.98, "resnet18": 0.95}  # ratio on one H100 with 16 cores
STAGES = {0: "stage one", 1: "one teacher"}
MAX_LEAD_IN = 10  # steps before the timed ones: then a slow loader has nothing prepared, and a GPU's queue is full
PACKAGES = ("torch", "torchvision", "accelerate", "numpy", "nvidia-dali-cuda120")


def main() -> None:
    """Measures case after case, prints a table and writes JSON."""
    arguments = parse_arguments()
    if arguments.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    shards = ShardReader(arguments.shards, "train")
    settings = {key: str(value) for key, value in vars(arguments).items()}
    cases: list[dict[str, Any]] = []
    for backbone in arguments.backbones:
        for num_teachers in arguments.teachers:
            config = config_of(backbone, num_teachers, shards, arguments)
            spec = plan_models(config, shards)[-1 if num_teachers else 0]
            accelerator = make_accelerator(config)
            rounds = measured_rounds(spec, config, accelerator, arguments)
            median = {name: statistics.median(values) for name, values in rounds.items()}
            cases.append({"backbone": backbone, "num_teachers": num_teachers, "median": median, "rounds": rounds})
            accelerator.free_memory()  # lets go of this case's models;
            release_memory()  # only then are they garbage, and collected before the next ones are built
            device = torch.cuda.get_device_name() if accelerator.device.type == "cuda" else "CPU"
            results = {"device": device, "settings": settings, **machine_and_versions(PACKAGES), "goals": GOALS}
            write_json(arguments.out, results | {"cases": cases})  # after each, for a run may be cut off
    what = f"batches of {arguments.batch_size}, {arguments.image_size} pixels, {arguments.rounds} rounds"
    print_table([table_row(case) for case in cases], f"on {device}, precision {arguments.precision}: {what}")


def config_of(backbone: str, num_teachers: int, shards: ShardReader, arguments: argparse.Namespace) -> Config:
    """The project's defaults, with what is to be measured."""
    data = {"shards": str(arguments.shards), "num_classes": shards.num_classes, "image_size": arguments.image_size}
    return Config.model_validate(
        {
            "output": "",  # nothing is written
            "mixed_precision": arguments.precision,
            "data": data,
            "model": {"backbone": backbone},
            "optimization": {"steps": arguments.steps, "global_batch": arguments.batch_size},
            "stage_one": {"teachers": [{"seed": seed} for seed in range(max(1, num_teachers))]},
            "runtime": {"decoder": arguments.decoder},
        }
    )


def measured_rounds(
    spec: ModelSpec, config: Config, accelerator: Accelerator, arguments: argparse.Namespace
) -> dict[str, list[float]]:
    """Trains on the constant batch and from the shards in turn.

    Returns:
        Of each round images per second of both, the ratio of the two, and the fraction of time waiting for the shards.
    """
    train_step = fresh_train_step(spec, config, accelerator)
    lead_in = min(MAX_LEAD_IN, arguments.steps)
    # the last steps that are timed compete with the decoding of the next ones, as all others do
    num_batches = lead_in + arguments.steps + config.runtime.prefetch
    rounds: dict[str, list[float]] = {"constant": [], "shards": [], "ratio": [], "wait_share": []}
    chosen = {"sampling": spec.sampling, "seed": spec.seed, "augmentation": spec.augmentation}
    if arguments.cache is not None:
        chosen["cache"] = arguments.cache
    with make_loader(config, accelerator, split="train", **chosen) as loader:
        constant = loader.batch(0)
        for number in range(arguments.rounds + 1):
            rate, _ = measure(train_step, repeat(constant, num_batches), lead_in, arguments.steps)
            batches = loader.steps(number * num_batches, (number + 1) * num_batches)
            real_rate, wait_share = measure(train_step, batches, lead_in, arguments.steps)
            if number:  # the first round warms up
                for name, value in zip(rounds, (rate, real_rate, real_rate / rate, wait_share), strict=True):
                    rounds[name].append(value)
    return rounds


def measure(train_step: TrainStep, batches: Iterator[Batch], lead_in: int, num_steps: int) -> tuple[float, float]:
    """Images per second, and the fraction of the time in which the process waits for a batch, after the lead-in."""
    for batch in islice(batches, lead_in):
        train_step.learn(batch.images, batch.labels)
    stop = stopwatch(train_step.accelerator.device)
    num_images, seconds_waited = 0, 0.0
    for _ in range(num_steps):
        asked = time.perf_counter()
        batch = next(batches)
        seconds_waited += time.perf_counter() - asked
        train_step.learn(batch.images, batch.labels)
        num_images += len(batch)
    seconds = stop()
    for _ in batches:  # else they would be decoded while the constant batch has its turn
        pass
    return num_images / seconds, seconds_waited / seconds


def stopwatch(device: torch.device) -> Callable[[], float]:
    """Starts; what it returns waits for the device and says how many seconds the work in between took there.

    On a GPU the start is an event among its work. To wait there until the GPU is idle would give the loader time to run
    ahead, which it does not have in training.
    """
    if device.type != "cuda":
        began = time.perf_counter()
        return lambda: time.perf_counter() - began
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()

    def stop() -> float:
        last.record()
        last.synchronize()
        return first.elapsed_time(last) / 1000

    return stop


def table_row(case: dict[str, Any]) -> dict[str, Any]:
    """Medians and spread of a case as a person reads them; the ratio is the median of the rounds' ratios."""
    number = case["num_teachers"]

    def shown(name: str, form: str) -> str:
        low, high = min(case["rounds"][name]), max(case["rounds"][name])
        return f"{case['median'][name]:{form}} ({low:{form}} to {high:{form}})"

    return {
        "case": f"{case['backbone']}, {STAGES.get(number, f'{number} teachers')}",
        "constant, images/s": shown("constant", ",.0f"),
        "shards, images/s": shown("shards", ",.0f"),
        "ratio": shown("ratio", ".3f"),
        "goal on an H100": GOALS.get(case["backbone"], ""),
        "waiting": shown("wait_share", ".1%"),
    }


def parse_arguments() -> argparse.Namespace:
    """The command line.

    Raises:
        InputError: an argument is impossible.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, required=True, metavar="DIR")
    parser.add_argument("--backbones", default="resnet50,resnet18", metavar="NAMES")
    parser.add_argument("--teachers", default="0,1,4", metavar="COUNTS", help="0: stage one")
    parser.add_argument("--batch-size", type=positive_int, default=128, metavar="N", help="default 128, the paper's")
    parser.add_argument("--image-size", type=positive_int, default=224, metavar="N")
    parser.add_argument("--steps", type=positive_int, default=100, metavar="N", help="that are timed at a stretch")
    parser.add_argument("--rounds", type=positive_int, default=5, metavar="N", help="after one to warm up")
    parser.add_argument("--precision", choices=("no", "bf16", "fp16"), default="bf16")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--decoder", choices=DECODERS, default="auto")
    parser.add_argument("--cache", type=float, metavar="FRACTION", help="of the images, kept decoded")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    arguments = parser.parse_args()
    arguments.backbones = names("--backbones", arguments.backbones, BACKBONES)
    arguments.teachers = teacher_counts(arguments.teachers)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: PyTorch finds no GPU here; use --device cpu or auto")
    return arguments


if __name__ == "__main__":
    run_command(main)
