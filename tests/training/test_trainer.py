"""Trainer in the caller's own process; under launchers it is in tests/end_to_end/test_scripts.py."""

import asyncio
import json
import warnings

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from cbd_fast import Config, InputError, RunError, Trainer
from cbd_fast.cli.plugins import load_plugin
from cbd_fast.training.global_state import global_state_restored
from cbd_fast.ui.dashboard import NullDashboard
from tests.helpers import REPOSITORY, digits_config

pytestmark = pytest.mark.slow

SHORT = {"optimization": {"steps": 4}, "stage_one": {"teachers": [{"seed": 1}]}, "stage_two": {"color_jitter": 0.0}}


def config_of(output, shards, **sections) -> Config:
    return digits_config(output, shards, **SHORT | {"runtime": {"log_every": 2, "num_threads": 1}} | sections)


def test_fit_returns_what_summary_json_holds(digits_shards, tmp_path):
    records = []
    trainer = Trainer(config_of(tmp_path, digits_shards), listeners=[records.append], dashboard=NullDashboard())
    also = []
    trainer.add_listener(also.append)
    summary = trainer.fit()
    assert summary == json.loads((tmp_path / "summary.json").read_text())
    assert list(trainer.results) == ["teacher-1", "student"]
    assert trainer.results["student"]["metrics"] == summary["student"]
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert records == also == logged
    assert {record["model"] for record in records} == {"teacher-1", "student"}


def test_one_stage_after_the_other(digits_shards, tmp_path):
    trainer = Trainer(config_of(tmp_path / "apart", digits_shards), dashboard=NullDashboard())
    first = trainer.fit(stages="teachers")
    assert (len(first["teachers"]), first["student"]) == (1, None)
    both = trainer.fit(stages="student")
    at_once = Trainer(config_of(tmp_path / "at_once", digits_shards), dashboard=NullDashboard()).fit()
    assert both["student"] == at_once["student"]
    assert both["teachers"] == at_once["teachers"] == first["teachers"]


def test_in_a_running_event_loop_as_in_a_notebook(digits_shards, tmp_path, capsys):
    async def cell():
        return Trainer(config_of(tmp_path, digits_shards)).fit("teachers")

    summary = asyncio.run(cell())
    assert "teacher-1 step 4/4" in capsys.readouterr().out
    assert summary["teachers"][0]["top1"] is not None


def test_what_the_caller_has_set_is_as_before(digits_shards, tmp_path):
    own = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=3)
    torch.set_num_threads(1)
    torch.backends.cudnn.benchmark = False
    torch._dynamo.config.suppress_errors = True
    torch.manual_seed(5)
    random_numbers = torch.random.get_rng_state()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="something of the caller's")
        filters = list(warnings.filters)
        runtime = {"num_threads": 2, "compile": False}
        Trainer(config_of(tmp_path, digits_shards, runtime=runtime), dashboard=NullDashboard()).fit("teachers")
        assert warnings.filters == filters
    assert torch.get_num_threads() == 1
    assert torch.backends.cudnn.benchmark is False
    assert torch._dynamo.config.suppress_errors is True
    assert torch.equal(torch.random.get_rng_state(), random_numbers)
    assert (own.mixed_precision, own.gradient_accumulation_steps) == ("bf16", 3)
    assert AcceleratorState().mixed_precision == "bf16"
    torch._dynamo.config.suppress_errors = False


def test_it_is_as_before_after_an_error_too():
    assert AcceleratorState._shared_state == {}

    def fail():
        with global_state_restored():
            Accelerator(cpu=True, mixed_precision="bf16")
            torch.backends.cudnn.benchmark = True
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert AcceleratorState._shared_state == {}
    assert torch.backends.cudnn.benchmark is False
    assert Accelerator(cpu=True).mixed_precision == "no"


def test_errors_are_exceptions(digits_shards, photo_shards, tmp_path):
    with pytest.raises(InputError, match=r"data\.num_classes: 10, but .* has 3 classes") as raised:
        Trainer(config_of(tmp_path / "run", photo_shards)).fit()
    assert not (tmp_path / "run").exists()
    assert not isinstance(raised.value, SystemExit)
    diverging = {"steps": 4, "global_batch": 16, "base_learning_rate": 1e30}
    with pytest.raises(RunError, match="the loss is not finite"):
        Trainer(config_of(tmp_path / "run", digits_shards, optimization=diverging), dashboard=NullDashboard()).fit()
    with pytest.raises(ValueError, match="stages"):
        Trainer(config_of(tmp_path, digits_shards)).fit(stages="both")


def test_a_teacher_of_another_run_of_another_backbone_and_width(digits_shards, tmp_path):
    other = config_of(tmp_path / "other", digits_shards, model={"backbone": "resnet32"}, stages="teachers")
    Trainer(other, dashboard=NullDashboard()).fit()
    path = tmp_path / "other" / "teacher-1"
    teachers = {"teachers": [{"path": str(path)}, {"seed": 7}]}
    config = config_of(tmp_path / "run", digits_shards, stage_one=teachers)
    trainer = Trainer(config, dashboard=NullDashboard())
    summary = trainer.fit()
    assert [spec.name for spec in trainer.specs] == ["teacher-2", "student"]
    assert len(summary["teachers"]) == 1
    identity = trainer.results["student"]["identity"]["stage_one.teachers"]
    assert list(identity[0]) == ["sha256"]
    # the student's target is of both: 64 and 128 features
    card = json.loads((tmp_path / "run" / "student" / "config.json").read_text())
    assert "192" in json.dumps(card)
    # elsewhere the same teacher is the same
    path.rename(tmp_path / "moved")
    moved = config_of(
        tmp_path / "run", digits_shards, stage_one={"teachers": [{"path": str(tmp_path / "moved")}, {"seed": 7}]}
    )
    assert Trainer(moved, dashboard=NullDashboard()).fit()["student"] == summary["student"]
    with pytest.raises(InputError, match="teacher-1"):
        Trainer(config, dashboard=NullDashboard()).fit()


def test_a_teacher_that_saw_other_colours_is_refused(digits_shards, tmp_path):
    Trainer(config_of(tmp_path / "other", digits_shards), dashboard=NullDashboard()).fit("teachers")
    changed = config_of(
        tmp_path / "run",
        digits_shards,
        data={
            "shards": str(digits_shards),
            "num_classes": 10,
            "image_size": 32,
            "augmentation": {"mean": [0.5, 0.5, 0.5]},
        },
        stage_one={"teachers": [{"path": str(tmp_path / "other" / "teacher-1")}]},
    )
    with pytest.raises(InputError, match=r"was trained with data\.augmentation\.mean None, and this run has \(0\.5"):
        Trainer(changed, dashboard=NullDashboard()).fit()


def test_own_parts_without_touching_the_package(digits_shards, tmp_path):
    load_plugin(REPOSITORY / "examples" / "own_parts.py")

    config = config_of(
        tmp_path,
        digits_shards,
        model={"backbone": "tiny"},
        stage_two={"loss": "focal", "loss_options": {"gamma": 1.0}, "sampling": "cube_root"},
        metrics=["top1", "worst_class", "macro_f1"],
    )
    summary = Trainer(config, dashboard=NullDashboard()).fit()
    assert set(summary["student"]) == {"top1", "worst_class", "macro_f1"}


def test_a_run_of_version_0_1_is_refused_in_one_line(digits_shards, tmp_path):
    (tmp_path / "config.yaml").write_text("output: x\nstages: both\nselect: auto\nruntime: {resident: null}\n")
    with pytest.raises(InputError, match=r"output: .* holds a run of cbd_fast 0\.1, which this version cannot go"):
        Trainer(config_of(tmp_path, digits_shards)).fit()
