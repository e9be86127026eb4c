"""Runs that end in the middle and go on: nothing is lost, nothing is said twice, and nothing is left behind."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cbd_fast import Loader
from cbd_fast.config.schema import Config
from cbd_fast.errors import InputError
from cbd_fast.training import finished, training_state
from cbd_fast.training.checkpoint import checkpoints
from cbd_fast.training.run_dir import RunDir
from cbd_fast.ui.dashboard import NullDashboard
from tests.helpers import digits_config, run_in_process

pytestmark = pytest.mark.slow

TIMES = {"images_per_second", "data_wait_fraction", "batch_milliseconds", "memory_gigabytes"}
SHORT = {"optimization": {"steps": 8}, "stages": "teachers"}


class Notes(NullDashboard):
    """What a person is told."""

    def __init__(self):
        self.notes = []

    def note(self, message):
        self.notes.append(message)


class KilledError(BaseException):
    """Nothing catches it, as nothing catches a kill."""


def killed_at(config: Config, monkeypatch, step: int, model="teacher-1") -> None:
    """A run that ends before it begins a step, which needs not be one with a line of the log."""

    def log_batch(self, name, begun, plan):
        if (name, begun) == (model, step):
            raise KilledError
        written(self, name, begun, plan)

    written = RunDir.log_batch
    with monkeypatch.context() as patch:
        patch.setattr(RunDir, "log_batch", log_batch)
        with pytest.raises(KilledError):
            run_in_process(config)


def damage_images_of_first_step(config: Config) -> None:
    """Two images; those of later steps may be met by what is read ahead, sooner or later."""
    seed = config.teacher_seed(config.stage_one.teachers[0])
    options = {"batch_size": 16, "image_size": 32, "total_steps": 11, "device": "cpu"}
    with Loader(config.data.shards, sampling="instance", seed=seed, **options) as loader:
        for entry in loader.shards.entries(loader.plan(0).indices[:2]):
            with open(loader.shards.paths[int(entry["shard"])], "r+b") as file:
                file.seek(int(entry["offset"]) + 60)
                file.write(b"damage")


def without_times(records: list[dict]) -> list[dict]:
    return [{name: value for name, value in record.items() if name not in TIMES} for record in records]


def files_of(output, name):
    return (Path(output) / name).read_text().splitlines()


def test_a_killed_run_logs_what_an_undisturbed_one_logs(digits_shards, tmp_path, monkeypatch):
    shards = shutil.copytree(digits_shards, tmp_path / "shards")
    runtime = {"log_every": 4, "checkpoint_every": 3, "evaluate_every": 5, "record_batches": True, "num_threads": 1}
    options = {"runtime": runtime, "optimization": {"steps": 11}, "stages": "teachers"}
    whole, killed = (digits_config(tmp_path / name, shards, **options) for name in ("whole", "killed"))
    damage_images_of_first_step(whole)
    expected = run_in_process(whole)
    for step in (5, 10):  # after the checkpoints of 3 and 9, which are between two lines
        killed_at(killed, monkeypatch, step)
        with open(tmp_path / "killed" / "bad_images.rank-0.jsonl", "a") as file:
            file.write('{"image": "cut o')
    found = run_in_process(killed)
    assert without_times(found) == without_times(expected)
    assert {record["bad_images"] for record in expected if "bad_images" in record} == {2}
    for name in ("batches.rank-0.jsonl", "bad_images.rank-0.jsonl"):
        assert sorted(files_of(killed.output, name)) == sorted(files_of(whole.output, name))
        assert len(set(files_of(killed.output, name))) == len(files_of(killed.output, name))
    weights = [load_file(Path(config.output) / "teacher-1" / "model.safetensors") for config in (whole, killed)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_a_damaged_checkpoint_is_told_and_gone_on_without(digits_shards, tmp_path, monkeypatch):
    config = digits_config(tmp_path / "run", digits_shards, **SHORT, runtime={"checkpoint_every": 3})
    whole = run_in_process(digits_config(tmp_path / "whole", digits_shards, **SHORT, runtime={"checkpoint_every": 3}))
    config = config.model_copy(update={"runtime": config.runtime.model_copy(update={"record_batches": True})})
    killed_at(config, monkeypatch, 7)
    assert [path.name[-1] for path in checkpoints(tmp_path / "run" / "teacher-1")] == ["3", "6"]
    weights = tmp_path / "run" / "teacher-1" / "checkpoint-00000006" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 4
    weights.write_bytes(data)
    dashboard = Notes()
    found = run_in_process(config, dashboard)
    (note,) = dashboard.notes
    assert re.match(
        r"teacher-1 goes on after step 3, as a newer checkpoint cannot be used: .*checkpoint-00000006/model", note
    )
    (record,) = [record for record in found if "damaged" in record]
    assert (record["model"], record["step"], len(record["damaged"])) == ("teacher-1", 3, 1)
    assert without_times([record for record in found if "damaged" not in record]) == without_times(whole)


@pytest.mark.parametrize("at", ["save_finished", "remove_leftovers"])
def test_nothing_is_left_beside_a_finished_model(digits_shards, tmp_path, monkeypatch, at):
    config = digits_config(tmp_path / "run", digits_shards, **SHORT)

    def kill(*_):
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr({"save_finished": training_state, "remove_leftovers": finished}[at], at, kill)
        with pytest.raises(KilledError):
            run_in_process(config)
    folder = tmp_path / "run" / "teacher-1"
    assert checkpoints(folder)
    assert (folder / "result.json").exists() == (at == "remove_leftovers")
    run_in_process(config)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "result.json"]


def test_a_finished_model_that_is_not_whole_is_refused(digits_shards, tmp_path):
    config = digits_config(tmp_path / "run", digits_shards, optimization={"steps": 2})
    run_in_process(config)
    for name in ("teacher-1", "student"):
        path = tmp_path / "run" / name / "model.safetensors"
        whole = path.read_bytes()
        for damaged in (whole[:-9], whole[:-1] + bytes([whole[-1] ^ 1])):
            path.write_bytes(damaged)
            with pytest.raises(
                InputError, match=rf"{name}/model\.safetensors: damaged .*; copy it there again, or rem"
            ):
                run_in_process(config)
        path.unlink()
        with pytest.raises(InputError, match=rf"{name}/model\.safetensors: missing, though the model is finished"):
            run_in_process(config)
        path.write_bytes(whole)
    run_in_process(config)


@pytest.mark.parametrize("content", [None, "\0\0\0\0"])
def test_a_damaged_config_of_a_run_is_written_anew(digits_shards, tmp_path, monkeypatch, content):
    config = digits_config(tmp_path / "run", digits_shards, **SHORT, runtime={"record_batches": True})
    killed_at(config, monkeypatch, 4)
    path = tmp_path / "run" / "config.yaml"
    written = path.read_text()
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(InputError, match="was trained with other settings"):
        run_in_process(config.model_copy(update={"seed": 1}))
    dashboard = Notes()
    run_in_process(config, dashboard)
    assert path.read_text() == written
    assert [("written anew" in note) for note in dashboard.notes] == ([] if content is None else [True])


def test_a_config_of_something_else_stays_and_nobody_is_told_to_empty_the_folder(digits_shards, tmp_path):
    (tmp_path / "config.yaml").write_text("")
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(InputError, match="holds something that is no run of this version") as refused:
        run_in_process(digits_config(tmp_path, digits_shards, **SHORT))
    assert "empty it" not in str(refused.value)


def test_there_are_checkpoints_by_default_and_by_the_clock(digits_shards, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(training_state, "save_checkpoint", lambda *args, **_: saved.append(args[3].step))
    run_in_process(digits_config(tmp_path / "steps", digits_shards, optimization={"steps": 12}, stages="teachers"))
    assert saved == list(range(2, 12, 2))
    saved.clear()
    runtime = {"checkpoint_every": 100, "checkpoint_minutes": 1e-9}
    run_in_process(digits_config(tmp_path / "clock", digits_shards, **SHORT, runtime=runtime))
    assert saved == list(range(1, 8))


def test_how_often_there_are_checkpoints_may_change_in_mid_run(digits_shards, tmp_path, monkeypatch):
    runtime = {"record_batches": True, "keep_checkpoints": 1, "checkpoint_every": 2, "checkpoint_minutes": 5}
    killed_at(digits_config(tmp_path, digits_shards, **SHORT, runtime=runtime), monkeypatch, 5)
    assert len(checkpoints(tmp_path / "teacher-1")) == 1
    runtime = {"keep_checkpoints": 3, "checkpoint_every": 1}
    assert run_in_process(digits_config(tmp_path, digits_shards, **SHORT, runtime=runtime))
