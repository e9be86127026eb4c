from types import SimpleNamespace

import pytest
import yaml
from accelerate import Accelerator

from cbd_fast.errors import InputError, RunError
from cbd_fast.training import trackers
from cbd_fast.training.trackers import (
    KNOWN,
    check_trackers,
    hyper_parameters,
    start_trackers,
    tracked_values,
    tracking_options,
)
from tests.helpers import digits_config, scalars

SPECS = [SimpleNamespace(name="teacher-1", num_steps=20), SimpleNamespace(name="student", num_steps=20)]


def test_unknown_trackers_are_refused():
    assert {"tensorboard", "wandb"} < set(KNOWN)
    check_trackers([])
    check_trackers(["tensorboard"])
    with pytest.raises(
        InputError, match=r"no tracker is called 'tensorbord'; known are .*mlflow.*, tensorboard, .*wan"
    ):
        check_trackers(["tensorboard", "tensorbord"])
    with pytest.raises(InputError, match="no tracker is called 'all'"):
        check_trackers(["all"])


def test_trackers_that_are_not_installed_are_refused(monkeypatch):
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(InputError, match="trackers: wandb is not installed; pip install wandb"):
        check_trackers(["tensorboard", "wandb"])


def test_hyper_parameters_are_flat_and_plain():
    config = digits_config("run", "shards", seed=3)
    values = dict(hyper_parameters(config))
    assert (values["seed"], values["model.backbone"]) == (3, "small_convnet")
    assert (values["stage_one.teachers.1.color_jitter"], values["runtime.cache"]) == (0.5, "none")
    assert values["data.augmentation.flip"] is False
    assert all(isinstance(value, int | float | str | bool) for value in values.values())


def test_names_of_values():
    logged = {"model": "teacher-1", "step": 4, "loss": 0.5, "batch_milliseconds": {"reading": 2.0}, "bad_images": 0}
    assert dict(tracked_values(logged)) == {
        "teacher-1/step": 4,
        "teacher-1/loss": 0.5,
        "teacher-1/batch_milliseconds/reading": 2,
        "teacher-1/bad_images": 0,
    }
    evaluated = {"model": "student", "step": 4, "split": "test", "top1": 80.5, "few": None}
    assert dict(tracked_values(evaluated)) == {"student/step": 4, "student/test/top1": 80.5}


def test_tensorboard_and_a_run_that_goes_on(tmp_path):
    config = digits_config(tmp_path / "run", "shards", trackers=["tensorboard"])
    assert not (tmp_path / "run").exists()
    for first in (0, 10):
        accelerator = Accelerator(cpu=True, **tracking_options(config))
        (tmp_path / "run").mkdir(exist_ok=True)
        track = start_trackers(config, accelerator, SPECS)
        for step in (first + 5, first + 10):
            for spec in SPECS:
                track({"model": spec.name, "step": step, "loss": 1 / step})
        accelerator.end_training()
    folder = tmp_path / "run" / "trackers" / "cbd_fast"
    found = scalars(folder)
    assert found.keys() >= {"teacher-1/loss", "student/loss"}
    # each model has its own steps, those of both launches
    for model in ("teacher-1", "student"):
        assert found[f"{model}/loss"] == [(step, pytest.approx(1 / step)) for step in (5, 10, 15, 20)]
    settings = next(folder.glob("*/hparams.yml"))
    assert yaml.safe_load(settings.read_text())["optimization.base_learning_rate"] == 0.05


def test_one_axis_of_steps_only_grows(tmp_path, monkeypatch):
    logged = []
    axis = SimpleNamespace(define_metric=lambda *names, **more: None)
    tracker = SimpleNamespace(name="wandb", tracker=axis, log=lambda values, step: logged.append((step, values)))
    accelerator = SimpleNamespace(trackers=[tracker], init_trackers=lambda *_: None)
    track = start_trackers(digits_config(tmp_path, "shards", trackers=["wandb"]), accelerator, SPECS)
    for spec in SPECS:
        for step in (10, 20):
            track({"model": spec.name, "step": step, "loss": 1.0})
    assert [step for step, _ in logged] == [10, 20, 30, 40]
    assert logged[2][1] == {"student/step": 10, "student/loss": 1.0}


def test_a_tracker_that_does_not_start_is_told_in_plain_words(tmp_path):
    def fail(*_):
        raise OSError("no API key")

    with pytest.raises(RunError, match=r"trackers: wandb did not start \(no API key\)"):
        start_trackers(
            digits_config(tmp_path, "shards", trackers=["wandb"]), SimpleNamespace(init_trackers=fail), SPECS
        )


def test_a_run_keeps_its_name_on_a_server(tmp_path):
    (tmp_path / "run" / "trackers").mkdir(parents=True)
    config = digits_config(tmp_path / "run", "shards", trackers=["wandb"])
    first, second = (trackers._options(config, tmp_path / "run" / "trackers")["wandb"] for _ in range(2))
    assert first == second
    assert (first["name"], first["resume"], len(first["id"])) == ("run", "allow", 32)
