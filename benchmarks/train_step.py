"""What does a training step cost, and how much of it the teachers?

    python benchmarks/train_step.py [--backbones resnet32,resnet50] [--teachers 0,1,2,4] [--precision no,bf16]
        [--teacher-precision auto] [--rounds 5] [--seconds 1] [--trained DIR --shards DIR] [--out FILE.json]

Every case is a stage's true step (losses, backward, optimizer) on one batch that is already on the device; 0 teachers
is stage one. Beside each other, in turns, so that whatever else the machine does meets all alike:

- naive: plain modules in float32, in PyTorch's default layout, the teachers one after the other, nothing compiled;
- naive teachers: the same teachers beside the student in the form in which the project trains it;
- ours: what the trainer does in a long run;
- compiled the other way: ours, with torch.compile where it is off by default, and without it where it is on;
- student: ours, with a target that is there already; teachers: theirs alone, in the form of ours.

A second table has the teachers' forms: milliseconds of one, and the largest distance 1 - cosine of its features from
those of the plain form, on fresh weights whose batch-norms know the images or, with --trained, on those of a
finished run's teacher-1 and test images of --shards.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import release_memory
from arguments import names, teacher_counts
from report import machine_and_versions, print_table, write_json
from timing import measured_rounds
from torch import Tensor

from cbd_fast import Loader
from cbd_fast.cli.command import run_command
from cbd_fast.cli.shard_options import positive_int
from cbd_fast.config.schema import Config
from cbd_fast.loading.augment import Augmentation
from cbd_fast.training.context import make_accelerator
from cbd_fast.training.model_folder import read_model
from cbd_fast.training.models import BACKBONES, CosineModel, Teachers, build_model
from cbd_fast.training.optimized_model import SideStream, inference_dtype, optimized_teachers
from cbd_fast.training.plan import ModelSpec, join_setup
from cbd_fast.training.run_dir import CONFIG_NAME
from cbd_fast.training.train_step import TrainStep, make_train_step, what_is_compiled

LONG_RUN, NUM_CLASSES = 10**6, 1000  # steps: all that pays is compiled
SMALL = ("resnet32", "small_convnet")  # for images of 32 pixels
CONTESTANTS = ("naive", "naive teachers", "ours", "compiled the other way", "student", "teachers")
NAIVE = {"compile": False, "channels_last": False}
GOAL_OF_PARTS, GOAL_OF_NAIVE = 1.1, 0.75
STAGES = {0: "stage one", 1: "one teacher"}
PACKAGES = ("torch", "torchvision", "accelerate", "numpy")


class Given(SideStream):
    """Teachers whose target is there already."""

    def __init__(self, target: Tensor) -> None:
        self._target = target

    def start(self, images: Tensor) -> Callable[[], Tensor]:
        return lambda: self._target


def main() -> None:
    """Measures case after case, prints tables and writes JSON."""
    arguments = parse_arguments()
    steps: list[dict[str, Any]] = []
    forms: list[dict[str, Any]] = []
    device = "CPU"
    for backbone in arguments.backbones:
        for precision in arguments.precision:
            for num_teachers in arguments.teachers:
                steps.append(measured_steps(backbone, precision, num_teachers, arguments))
                settings = {key: str(value) for key, value in vars(arguments).items()}
                results = {**machine_and_versions(PACKAGES), "settings": settings, "steps": steps, "forms": forms}
                write_json(arguments.out, results)  # after each, for a run may be cut off
        forms += measured_forms(backbone, arguments)
    results["forms"] = forms
    write_json(arguments.out, results)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print_table([step_row(case) for case in steps], f"milliseconds of a step on {device}, {arguments.rounds} rounds")
    print(f"goals: ours / (student + teachers) at most {GOAL_OF_PARTS}; ours / naive at most {GOAL_OF_NAIVE} with four")
    print_table([form_row(case) for case in forms], f"one teacher's forms on {device}")


def measured_steps(backbone: str, precision: str, num_teachers: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Medians and rounds of milliseconds per step, by contestant."""
    torch._dynamo.reset()  # it stops compiling a function of which it has seen many kinds
    images, labels = batch_of(backbone, arguments)
    naive = train_step_of(config_of(backbone, "no", num_teachers, NAIVE), num_teachers)
    config = config_of(backbone, precision, num_teachers, {"teacher_precision": arguments.teacher_precision})
    ours = train_step_of(config, num_teachers)
    device = ours.accelerator.device
    plain, fast = (
        (images.to(device).contiguous(memory_format=train_step.layout), labels.to(device))
        for train_step in (naive, ours)
    )
    contestants: dict[str, Callable[[], Any]] = {
        "naive": lambda: naive.learn(*plain),
        "ours": lambda: ours.learn(*fast),
    }
    if num_teachers:
        assert ours.teachers
        naive_teachers = replace(ours, teachers=naive.teachers)
        alone = replace(ours, teachers=Given(ours.teachers.start(fast[0])()))
        contestants |= {
            "naive teachers": lambda: naive_teachers.learn(*fast),
            "student": lambda: alone.learn(*fast),
            "teachers": lambda: ours.teachers.start(fast[0])(),  # type: ignore[union-attr]
        }
    else:
        compiles, _ = what_is_compiled(config, device, LONG_RUN)
        runtime = config.runtime.model_copy(update={"compile": not compiles})
        other = train_step_of(config.model_copy(update={"runtime": runtime}), num_teachers)
        contestants["compiled the other way"] = lambda: other.learn(*fast)
    rounds = measured_rounds(contestants, device, arguments)
    ours.free()
    release_memory()
    median = {name: statistics.median(values) for name, values in rounds.items()}
    if num_teachers and arguments.teacher_precision != "auto":
        precision += f", teachers in {arguments.teacher_precision}"
    facts = {"backbone": backbone, "precision": precision, "num_teachers": num_teachers, "batch_size": len(labels)}
    return facts | {"median": median, "rounds": rounds}


def train_step_of(config: Config, num_teachers: int) -> TrainStep:
    """What the engine makes of the last stage of a config, with weights that have learned nothing."""
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = make_accelerator(config)
    spec = ModelSpec(
        name="model",
        stage="student" if num_teachers else "teachers",
        seed=0,
        sampling="instance",
        augmentation=Augmentation(),
        num_steps=LONG_RUN,
        teachers=(Path(),) * num_teachers,
        class_counts=(1,) * NUM_CLASSES,
        folder=Path(),
        identity={},
    )
    teachers = [build_model(config.model.backbone, NUM_CLASSES) for _ in range(num_teachers)]
    train_step = make_train_step(join_setup(spec, config, teachers), config, accelerator)
    if not config.runtime.channels_last and num_teachers:  # the naive form
        train_step = replace(
            train_step, teachers=SideStream(Teachers(teachers).to(accelerator.device), accelerator.device)
        )
    return train_step


def config_of(backbone: str, precision: str, num_teachers: int, runtime: dict[str, Any]) -> Config:
    """The project's defaults, but for some settings of ``runtime``."""
    return Config.model_validate(
        {
            "output": "",  # nothing is written
            "mixed_precision": precision,
            "data": {"shards": "", "num_classes": NUM_CLASSES, "image_size": side_of(backbone)},
            "model": {"backbone": backbone},
            "optimization": {"steps": LONG_RUN},
            "stage_one": {"teachers": [{"seed": seed} for seed in range(max(1, num_teachers))]},
            "runtime": runtime,
        }
    )


def batch_of(backbone: str, arguments: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Images and labels without meaning, of the usual size."""
    side = side_of(backbone)
    size = arguments.batch_size or (128 if side == 32 or torch.cuda.is_available() else 8)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(size, 3, side, side, generator=generator)
    return images, torch.randint(NUM_CLASSES, (size,), generator=generator)


def side_of(backbone: str) -> int:
    """Accuracy on the images that it is for."""
    return 32 if backbone in SMALL else 224


def measured_forms(backbone: str, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Time and distance of a teacher's forms."""
    torch._dynamo.reset()
    AcceleratorState._reset_state(reset_partial_state=True)
    device = Accelerator(cpu=not torch.cuda.is_available()).device
    model, images = teacher_and_images(backbone, arguments)
    plain = Teachers([model.to(device)])
    images = images.to(device)
    candidates = {"plain float32": SideStream(plain, device)}
    for precision in ("no", "bf16", "fp16"):
        dtype = inference_dtype(precision, device)
        for is_compiled in (False, True) if precision == "no" or dtype != torch.float32 else ():
            name = f"folded, {str(dtype).removeprefix('torch.')}{', compiled' if is_compiled else ''}"
            candidates[name] = SideStream(optimized_teachers(plain, dtype, is_compiled), device)
    expected = candidates["plain float32"].start(images)().double()
    distances = {
        name: float((1 - (form.start(images)().double() * expected).sum(dim=1)).abs().max())
        for name, form in candidates.items()
    }

    def call(form: SideStream) -> Callable[[], Tensor]:
        return lambda: form.start(images)()

    rounds = measured_rounds({name: call(form) for name, form in candidates.items()}, device, arguments)
    for name, distance in distances.items():
        median = statistics.median(rounds[name])
        facts = {"backbone": backbone, "form": name, "batch_size": len(images)}
        yield facts | {"milliseconds": median, "rounds": rounds[name], "distance": distance}


def teacher_and_images(backbone: str, arguments: argparse.Namespace) -> tuple[CosineModel, Tensor]:
    """A finished run's teacher with test images, or one whose batch-norms know the images that it gets."""
    if arguments.trained:
        config = Config.from_file(arguments.trained / CONFIG_NAME)
        if config.model.backbone == backbone:
            shards = arguments.shards or config.data.shards
            loader = Loader(
                shards,
                split="test",
                sampling="sequential",
                batch_size=128,
                image_size=config.data.image_size,
                augmentation=config.data.augmentation.for_test(),
                device="cpu",
            )
            with loader:
                images = loader.batch(0).images
            model = read_model(arguments.trained / "teacher-1")[0]
            return model.eval(), images
    images, _ = batch_of(backbone, arguments)
    model = build_model(backbone, NUM_CLASSES).train()
    with torch.no_grad():
        for _ in range(20):  # a running mean takes a few
            model(images)
    return model.eval(), images


def step_row(case: dict[str, Any]) -> dict[str, Any]:
    """A case as a person reads it: medians, with the spread of the rounds."""

    def shown(name: str) -> str:
        if name not in case["rounds"]:
            return ""
        values = case["rounds"][name]
        return f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})"

    median = case["median"]
    parts = median.get("student", 0) + median.get("teachers", 0)
    number = case["num_teachers"]
    return {
        "case": f"{case['backbone']}, {case['precision']}, {STAGES.get(number, f'{number} teachers')}",
        "batch": case["batch_size"],
        **{name: shown(name) for name in CONTESTANTS},
        "ours / parts": f"{median['ours'] / parts:.2f}" if parts else "",
        "ours / naive": f"{median['ours'] / median['naive']:.2f}",
        "ours / naive teachers": f"{median['ours'] / median['naive teachers']:.2f}" if parts else "",
    }


def form_row(case: dict[str, Any]) -> dict[str, Any]:
    """A teacher's form as a person reads it."""
    return {
        "form": f"{case['backbone']}, {case['form']}",
        "batch": case["batch_size"],
        "ms": f"{case['milliseconds']:.4g} ({min(case['rounds']):.4g} to {max(case['rounds']):.4g})",
        "1 - cosine to the plain form, at most": f"{case['distance']:.1e}",
    }


def parse_arguments() -> argparse.Namespace:
    """The command line.

    Raises:
        InputError: an argument is impossible.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", default="resnet32,resnet50", metavar="NAMES")
    parser.add_argument("--teachers", default="0,1,2,4", metavar="COUNTS", help="0: stage one")
    parser.add_argument("--precision", default="no,bf16", metavar="NAMES", help="of ours: no, bf16, fp16")
    parser.add_argument("--teacher-precision", default="auto", choices=("auto", "no", "bf16", "fp16"))
    parser.add_argument(
        "--batch-size", type=positive_int, metavar="N", help="default: 128, or 8 of 224 pixels on the CPU"
    )
    parser.add_argument("--rounds", type=positive_int, default=5, metavar="N", help="after one to warm up")
    parser.add_argument("--seconds", type=float, default=1.0, metavar="S", help="of a contestant's turn")
    parser.add_argument("--trained", type=Path, metavar="DIR", help="a finished run, for the forms of its teacher-1")
    parser.add_argument("--shards", type=Path, metavar="DIR", help="if they are not where that run's config says")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    arguments = parser.parse_args()
    arguments.backbones = names("--backbones", arguments.backbones, BACKBONES)
    arguments.precision = names("--precision", arguments.precision, ("no", "bf16", "fp16"))
    arguments.teachers = teacher_counts(arguments.teachers)
    return arguments


if __name__ == "__main__":
    run_command(main)
