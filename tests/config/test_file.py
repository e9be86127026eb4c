import re

import pytest

from cbd_fast.config.schema import Config
from cbd_fast.errors import InputError


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("output: runs/x\ndata: {shards: s, num_classes: 10}\noptimization: {epochs: 2}\n")
    return path


def test_overrides(path):
    config = Config.from_file(
        path,
        [
            "optimization.weight_decay=1e-4",
            "stages=teachers",
            "mixed_precision=no",
            "stage_one.teachers=[{seed: 1}, {seed: 1, color_jitter: 1}]",
            "data.augmentation.mean=[0.5, 0.5, 0.5]",
        ],
    )
    assert config.optimization.weight_decay == 1e-4
    assert (config.stages, config.mixed_precision) == ("teachers", "no")
    assert [teacher.color_jitter for teacher in config.stage_one.teachers] == [0, 1]
    assert config.data.augmentation.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimisation.epochs=3", "optimisation: no such setting; did you mean optimization"),
        ("optimization.epoch=3", r"optimization\.epoch: no such setting; did you mean optimization\.epochs\?"),
        ("optimization.epochs=many", r"optimization\.epochs: must be a valid number, not 'many'"),
        ("optimization.epochs=-1", r"optimization\.epochs: must be greater than 0, not -1"),
        ("optimization.global_batch=12.5", r"optimization\.global_batch: must be a valid integer, not 12\.5"),
        ("optimization.global_batch=true", r"optimization\.global_batch: must be a valid integer, not True"),
        ("optimization.steps=5", "set either `epochs` or `steps`, and not both"),
        ("optimization.accumulation=3", "accumulation 3 must divide optimization.global_batch 128"),
        ("stages=three", "stages: must be 'teachers', 'student' or 'all', not 'three'"),
        ("mixed_precision=half", "mixed_precision: must be 'no', 'bf16' or 'fp16', not 'half'"),
        ("model.backbone=vgg", r"model\.backbone: must be one of resnet18, .*, not 'vgg'"),
        ("stage_two.alpha=1.5", r"stage_two\.alpha: must be less than or equal to 1, not 1\.5"),
        ("stage_one.teachers=[]", "stage_one.teachers is empty: distillation needs a teacher"),
        ("stage_one.teachers=[{seed: 1}, {seed: 1}]", "two teachers have the same seed"),
        ("data.augmentation.min_area=0", r"data\.augmentation\.min_area: must be greater than 0"),
        ("data.augmentation.crop=center", "data.augmentation.crop center is for testing"),
        ("data={shards: s}", r"data\.num_classes: must be set"),
        ("data.augmentation={crop: pad_and_crop, padding: 224}", "padding 224 must be below data.image_size 224"),
        ("data.augmentation.color_jitter=1", "color_jitter is each model's own"),
        ("optimization.epochs=.inf", r"optimization\.epochs: must be a finite number"),
        ("seed=99999999999999999999", "seed: must be less than"),
        (
            "stage_one.teachers=[{sead: 1}]",
            r"stage_one\.teachers\.0\.sead: no such setting; did you mean stage_one.teac",
        ),
        ("epochs", "not a setting; write name=value"),
        ("output.x=1", "output is a setting, not a section"),
        ("seed={", "the value is not YAML"),
        ("trackers=3", "trackers: must be a list, not 3"),
    ],
)
def test_impossible_settings_are_refused_by_name(path, override, message):
    with pytest.raises(InputError, match=message):
        Config.from_file(path, [override])


def test_all_mistakes_are_told_at_once(path):
    with pytest.raises(InputError, match=r"stages: .*; optimization\.momentum: "):
        Config.from_file(path, ["stages=both", "optimization.momentum=1"])


def test_unreadable_files(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        Config.from_file(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(InputError, match="holds no settings"):
        Config.from_file(tmp_path / "list.yaml")
    (tmp_path / "odd.yaml").write_text("a: [")
    with pytest.raises(InputError, match="not YAML"):
        Config.from_file(tmp_path / "odd.yaml")
    (tmp_path / "python.yaml").write_text("!!python/object/apply:os.system ['true']")
    with pytest.raises(InputError, match="not YAML"):
        Config.from_file(tmp_path / "python.yaml")


def test_resolved_settings_can_be_run_again(path, tmp_path):
    config = Config.from_file(path, ["stage_one.teachers=[{seed: 3}]"])
    again = tmp_path / "again.yaml"
    again.write_text(config.to_yaml())
    assert Config.from_file(again) == config


def test_none_is_nothing(path):
    assert Config.from_file(path, ["runtime.cache=0.2"]).runtime.cache == 0.2
    assert Config.from_file(path, ["runtime.cache=none", "runtime.num_threads=null"]).runtime.cache is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nseed: 2\n", "'seed' is set twice, in line 4 and again in line 5"),
        ("data: {shards: t, num_classes: 10}\n", "'data' is set twice, in line 2 and again in line 4"),
    ],
)
def test_a_setting_or_section_twice(path, text, message):
    path.write_text(path.read_text() + text)
    with pytest.raises(InputError, match=message):
        Config.from_file(path)


def test_a_setting_twice_on_the_command_line(path):
    with pytest.raises(InputError, match="seed: is given twice on the command line; remove one"):
        Config.from_file(path, ["seed=1", "optimization.epochs=3", "seed=2"])


def test_numbers_are_those_that_people_see(path):
    assert Config.from_file(path, ["seed=010"]).seed == 10
    with pytest.raises(InputError, match=r"seed: must be a valid integer, not '1:30'"):
        Config.from_file(path, ["seed=1:30"])


def test_paths_are_expanded(path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DATA", "/mnt/data")
    overrides = ["output=~/runs/x", "data.shards=${DATA}/s", "stage_one.teachers=[{path: $DATA/t}]"]
    config = Config.from_file(path, overrides)
    assert (config.output, config.data.shards) == ("/home/me/runs/x", "/mnt/data/s")
    assert config.stage_one.teachers[0].path == "/mnt/data/t"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("output=${NOT_SET}/x", r"output: \$\{NOT_SET\}/x: the environment variable NOT_SET is not set"),
        ("data.shards=~nobody_of_that_name/x", "data.shards: ~nobody_of_that_name/x: there is no such user"),
    ],
)
def test_paths_that_cannot_be_expanded(path, monkeypatch, override, message):
    monkeypatch.delenv("NOT_SET", raising=False)
    with pytest.raises(InputError, match=message):
        Config.from_file(path, [override])


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("lr", "optimization.base_learning_rate"),
        ("optimization.lr", "optimization.base_learning_rate"),
        ("batch_size", "optimization.global_batch"),
        ("batch-size", "optimization.global_batch"),
        ("epochs", "optimization.epochs"),
        ("backbone", "model.backbone"),
        ("stage_one.backbone", "model.backbone"),
        ("data.num_threads", "runtime.num_threads"),
        ("alpha", "stage_two.alpha"),
        ("weight_decy", "optimization.weight_decay"),
        ("color_jitter", "data.augmentation.color_jitter or stage_one.teachers[].color_jitter or stage_two.color_jitt"),
    ],
)
def test_what_was_meant(path, name, meant):
    with pytest.raises(InputError, match=f"{name}: no such setting; did you mean {re.escape(meant)}"):
        Config.from_file(path, [f"{name}=1"])
