from typing import Any

import pytest

from cbd_fast.config.schema import Config

SMALLEST = {"output": "runs/x", "data": {"shards": "s", "num_classes": 10}, "optimization": {"epochs": 2}}


def make_config(**sections: Any) -> Config:
    """The smallest configuration, with sections and settings besides or instead."""
    return Config.model_validate(SMALLEST | sections)


def test_defaults_are_the_papers():
    config = make_config()
    assert config.model.backbone == "resnet50"
    assert (config.optimization.global_batch, config.optimization.learning_rate) == (128, 0.05)
    assert (config.optimization.momentum, config.optimization.weight_decay) == (0.9, 2.5e-4)
    assert (config.stage_one.sampling, config.stage_two.sampling) == ("instance", "class_balanced")
    assert (config.stage_two.alpha, config.stage_two.beta) == (0.4, 100)
    augmentation = config.data.augmentation
    assert (augmentation.min_area, augmentation.max_area) == (0.05, 1)
    assert (augmentation.mean, augmentation.std) == (None, None)


def test_lengths():
    assert make_config().optimization.num_steps(1000) == 16  # 2 epochs of 1000 in batches of 128: 15.6
    assert make_config(optimization={"steps": 7}).optimization.num_steps(1000) == 7


def test_seeds_are_all_different():
    teachers = {"teachers": [{"seed": 0}, {"seed": 1}]}
    config, other = make_config(stage_one=teachers), make_config(stage_one=teachers, seed=1)
    seeds = [c.teacher_seed(t) for c in (config, other) for t in c.stage_one.teachers]
    seeds += [config.student_seed, other.student_seed]
    assert len(set(seeds)) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_teacher_does_not_depend_on_the_student_or_the_machine():
    def teacher(**sections: Any) -> dict[str, Any]:
        config = make_config(**sections)
        return config.identity(config.stage_one.teachers[0])

    elsewhere = {"shards": "elsewhere", "num_classes": 10}
    runtime = {"num_threads": 3}
    assert teacher() == teacher(stage_two={"alpha": 0.1}, output="y", runtime=runtime, stages="teachers")
    assert teacher() == teacher(data=elsewhere, optimization={"epochs": 2, "accumulation": 2})
    assert teacher() != teacher(optimization={"epochs": 2, "momentum": 0.8})
    two = make_config(stage_one={"teachers": [{"seed": 1}, {"seed": 2}]})
    assert two.identity(two.stage_one.teachers[0]) == teacher()
    assert two.identity(None) != make_config().identity(None)


def test_trackers_are_no_part_of_a_run():
    plain, tracked = make_config(), make_config(trackers=["tensorboard"])
    assert (plain.trackers, tracked.trackers) == ((), ("tensorboard",))
    assert plain.identity(None) == tracked.identity(None)
    assert make_config(trackers="tensorboard") == tracked  # a single word


@pytest.mark.parametrize("precision", [False, "no"])  # YAML reads a bare `no` as false
def test_no_is_a_word_where_words_are_meant(precision):
    config = make_config(mixed_precision=precision, runtime={"teacher_precision": precision})
    assert (config.mixed_precision, config.runtime.teacher_precision) == ("no", "no")
