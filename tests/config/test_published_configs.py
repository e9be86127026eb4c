"""Every shipped config is the recipe that is typed out here by hand, and its header says how to run it."""

import re
import shlex
from math import floor
from pathlib import Path
from typing import NamedTuple

import pytest

from cbd_fast.cli.shard_options import write_options_from
from cbd_fast.cli.shards import make_parser
from cbd_fast.config.schema import Config
from cbd_fast.shards.writing.presets import PRESETS

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "configs"

ONE = [(1, 0.0)]  # seed and colour jitter of each teacher
FOUR = [(1, 0.0), (2, 0.0), (1, 1.0), (2, 1.0)]
RESIZED = ("random_resized_crop", 0.05, 1.0)


class Recipe(NamedTuple):
    backbone: str
    num_classes: int
    num_images: int
    epochs: float
    num_steps: int
    global_batch: int
    learning_rate: float  # the highest
    weight_decay: float  # as torch's SGD has it
    teachers: list[tuple[int, float]]
    image_size: int
    crop: tuple[str, float, float] | tuple[str, int]


# ImageNet-LT and iNaturalist 2018 as in the official code, whose weight decay of 5e-4 and 2e-4 is halved in its loss
RECIPES = {
    "imagenet_lt_r50": Recipe("resnet50", 1000, 115_846, 90, 81_454, 128, 0.05, 2.5e-4, ONE, 224, RESIZED),
    "imagenet_lt_r50_ens": Recipe("resnet50", 1000, 115_846, 90, 81_454, 128, 0.05, 2.5e-4, FOUR, 224, RESIZED),
    "imagenet_lt_r152_ens": Recipe("resnet152", 1000, 115_846, 90, 81_454, 128, 0.05, 2.5e-4, FOUR, 224, RESIZED),
    "inaturalist17_r50": Recipe("resnet50", 5089, 579_184, 200, 904_975, 128, 0.05, 1e-4, ONE, 224, RESIZED),
    "inaturalist18_r50": Recipe("resnet50", 8142, 437_513, 200, 683_614, 128, 0.05, 1e-4, ONE, 224, RESIZED),
    "inaturalist18_r50_ens": Recipe("resnet50", 8142, 437_513, 200, 683_614, 128, 0.05, 1e-4, FOUR, 224, RESIZED),
    "inaturalist18_r101_ens": Recipe("resnet101", 8142, 437_513, 200, 683_614, 128, 0.05, 1e-4, FOUR, 224, RESIZED),
    "places_lt_r50": Recipe("resnet50", 365, 62_500, 90, 43_945, 128, 0.05, 2.5e-4, ONE, 224, RESIZED),
    "cifar100_lt_r32": Recipe("resnet32", 100, 10_847, 80, 6_779, 128, 0.1, 2e-3, ONE, 32, ("pad_and_crop", 4)),
    "cifar100_lt_r32_ens": Recipe("resnet32", 100, 10_847, 80, 6_779, 128, 0.1, 2e-3, FOUR, 32, ("pad_and_crop", 4)),
    "cifar10_lt_r32": Recipe("resnet32", 10, 12_406, 200, 19_384, 128, 0.1, 2e-4, ONE, 32, ("pad_and_crop", 4)),
    "tiny_imagenet_lt_r18": Recipe("resnet18", 200, 21_549, 100, 16_835, 128, 0.1, 2e-4, ONE, 64, ("pad_and_crop", 8)),
    "digits_lt": Recipe("small_convnet", 10, 304, 30, 285, 32, 0.1, 2.5e-4, ONE, 32, ("pad_and_crop", 4)),
}
# images of the largest class, where the long tail is made of a balanced set
LARGEST = {"cifar100_lt": 500, "cifar10_lt": 5000, "tiny_imagenet_lt": 500}

each_config = pytest.mark.parametrize("name", RECIPES)


@pytest.fixture(scope="module")
def parser():
    return make_parser()


def test_no_config_is_missing_or_unknown():
    assert {path.name for path in FOLDER.iterdir()} - {"README.md"} == {f"{name}.yaml" for name in RECIPES}
    table = (FOLDER / "README.md").read_text()
    assert [name for name in RECIPES if f"| [{name}]({name}.yaml) |" not in table] == []


@each_config
def test_recipe(name):
    config, recipe = Config.from_file(FOLDER / f"{name}.yaml"), RECIPES[name]
    optimization, augmentation = config.optimization, config.data.augmentation
    assert config.model.backbone == recipe.backbone
    assert (config.data.num_classes, config.data.image_size) == (recipe.num_classes, recipe.image_size)
    assert (optimization.epochs, optimization.global_batch) == (recipe.epochs, recipe.global_batch)
    assert optimization.num_steps(recipe.num_images) == recipe.num_steps
    assert optimization.learning_rate == pytest.approx(recipe.learning_rate)
    assert (optimization.momentum, optimization.weight_decay) == (0.9, recipe.weight_decay)
    assert [(teacher.seed, teacher.color_jitter) for teacher in config.stage_one.teachers] == recipe.teachers
    assert (config.stage_one.sampling, config.stage_two.sampling) == ("instance", "class_balanced")
    assert (config.stage_two.alpha, config.stage_two.beta, config.stage_two.color_jitter) == (0.4, 100, 0)
    if recipe.crop[0] == "random_resized_crop":
        assert (augmentation.crop, augmentation.min_area, augmentation.max_area) == recipe.crop
        assert (augmentation.min_aspect, augmentation.max_aspect) == (3 / 4, 4 / 3)
        assert augmentation.for_test().center_fraction == 224 / 256
    else:
        assert (augmentation.crop, augmentation.padding) == recipe.crop
        assert augmentation.for_test().center_fraction == 1
    assert (augmentation.mean, augmentation.std) == (None, None)
    assert augmentation.flip == (name != "digits_lt")
    assert config.stages == "all"
    (command,) = _commands(name, "python")
    has_val = any(option in command for option in ("--val", "--val-per-class"))
    assert config.checkpoint_selection == (
        "last" if has_val else "auto"
    )  # as the official code; the last, too, without a split
    assert config.output == f"runs/{name}"


@each_config
def test_no_two_models_are_the_same(name):
    config = Config.from_file(FOLDER / f"{name}.yaml")
    teachers = config.stage_one.teachers
    assert len({(teacher.seed, teacher.color_jitter) for teacher in teachers}) == len(teachers)
    seeds = {teacher.seed: config.teacher_seed(teacher) for teacher in teachers}
    assert len({*seeds.values(), config.student_seed}) == len(seeds) + 1


@each_config
def test_header_makes_the_shards(name, parser):
    config, recipe = Config.from_file(FOLDER / f"{name}.yaml"), RECIPES[name]
    (command,) = _commands(name, "python")
    assert command[:2] == ["python", "tools/make_shards.py"]
    arguments = parser.parse_args(command[2:])
    options = write_options_from(arguments, parser)
    assert str(arguments.out) == config.data.shards
    if options.preset:
        assert PRESETS[options.preset].num_classes == recipe.num_classes
        assert PRESETS[options.preset].splits["train"] == recipe.num_images
    if options.tail:
        assert sum(options.tail.counts(LARGEST[arguments.out.name], recipe.num_classes)) == recipe.num_images
    assert options.preset or options.tail or arguments.source == "digits"


def test_configs_of_the_same_shards_make_them_alike():
    commands: dict[str, list[list[str]]] = {}
    for name in RECIPES:
        commands.setdefault(Config.from_file(FOLDER / f"{name}.yaml").data.shards, []).extend(_commands(name, "python"))
    for same in commands.values():
        assert all(command == same[0] for command in same)


@each_config
def test_header_trains_this_file(name):
    (command,) = _commands(name, "accelerate")
    assert command == shlex.split(f"accelerate launch -m cbd_fast.train --config configs/{name}.yaml")


@each_config
def test_header_says_what_it_is(name):
    header, recipe = _header(name), RECIPES[name]
    config = Config.from_file(FOLDER / f"{name}.yaml")
    first = " ".join(header.split("\n\n")[0].split())
    assert f"{recipe.num_images:,} training images of {recipe.num_classes} classes" in first
    assert ("CBD-ENS" in first) == (recipe.teachers == FOUR)
    assert (config.mixed_precision == "bf16") == (recipe.image_size == 224 or "cifar100" in name)
    assert "bf16" in header or config.mixed_precision == "no"
    assert len(re.findall(r"^Published: \S", header, re.MULTILINE)) == 1
    assert len(re.findall(r"^Our result: \S", header, re.MULTILINE)) == 1


def test_images_of_tiny_imagenet_lt():
    counts = [floor(500 * (1 / 100) ** (c / 199)) for c in range(200)]
    assert (counts[0], counts[-1]) == (500, 5)
    assert sum(counts) == RECIPES["tiny_imagenet_lt_r18"].num_images


def _header(name):
    """The comment that a config begins with, without its marks and the space behind them."""
    lines = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").split("\noutput:")[0].splitlines()
    assert all(line.startswith("#") for line in lines)
    return "\n".join(line.removeprefix("#").strip() for line in lines)


def _commands(name, program):
    """The header's commands that begin so, as words."""
    whole = re.sub(r"\\\n\s*", "", _header(name))  # a backslash goes on in the next line
    return [shlex.split(line) for line in whole.splitlines() if line.startswith(f"{program} ")]
