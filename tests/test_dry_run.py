"""What a dry run says and refuses, in this process; whole commands are in test_end_to_end.py."""

import shutil
from collections import namedtuple
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cbd_fast import dry_run
from cbd_fast import train as command
from cbd_fast.dashboard import Silent
from cbd_fast.dry_run import Planned, Unwritten, check_writable, disk_bytes, rehearse, summary_lines, written_lines
from cbd_fast.errors import InputError
from cbd_fast.training import rehearsal, trial
from cbd_fast.training.trial import Kept, Measured

from .test_engine import _fresh_accelerator, config_of, run  # noqa: F401


def measured(**changed) -> Measured:
    values = {"rate": 100.0, "evaluation_rate": 200.0, "peak_bytes": 1, "weight_bytes": 10, "optimizer_bytes": 8}
    return Measured(**{**values, "kept": None, **changed})


def planned(name="teacher-1", num_steps=100, num_done=0, measured=measured()) -> Planned:  # noqa: B008
    job = SimpleNamespace(name=name, stage="one", num_steps=num_steps, folder=Path(name))
    return Planned(job=job, num_done=num_done, measured=measured)


def rehearse_config(config, capsys) -> str:
    """What a dry run of a config prints."""
    shards = command.open_shards(config)
    jobs = command.wanted_jobs(command.plan_jobs(config, shards), config.stages)
    accelerator, unwritten = command.make_accelerator(config), Unwritten()
    with command.open_surroundings(config, accelerator, unwritten, Silent()) as around:
        rehearse(jobs, around, unwritten.bad_pictures, "title [b]")
    return capsys.readouterr().out


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(trial, "SECONDS", 0.01)


def contents(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_times():
    assert planned().training_seconds(32) == 100 * 32 / 100
    assert planned(num_done=75).training_seconds(32) == 25 * 32 / 100
    assert planned().evaluation_seconds(500, None) == 2.5
    # after 30, 60, 90 and 100 steps; the first two are done
    assert planned().evaluation_seconds(500, 30) == 4 * 2.5
    assert planned(num_done=60).evaluation_seconds(500, 30) == 2 * 2.5
    assert planned(num_steps=90).evaluation_seconds(500, 30) == 3 * 2.5  # the last is the one at the end
    finished = planned(measured=None)
    assert (finished.training_seconds(32), finished.evaluation_seconds(500, 30)) == (0, 0)
    config = config_of("run", "shards", runtime={"evaluate_every": None})
    assert list(summary_lines([planned(), planned()], config, 500)) == [
        "time: about 0:00:37 in all, 0:00:05 of it for evaluation"  # 2 * (100 * 16 / 100 + 2.5)
    ]


def test_room_on_the_disk():
    assert disk_bytes([planned()], 1000) == 10  # the model alone: it has no checkpoint
    assert disk_bytes([planned()], 100) == 10
    assert disk_bytes([planned()], 99) == 10 + 18
    assert disk_bytes([planned(), planned()], 10) == 2 * 10 + 2 * 18  # two checkpoints, of one model at a time
    assert disk_bytes([planned(measured=None)], 10) == 0


def test_resident_pictures_are_told():
    kept = Kept(num_pictures=1234, num_bytes=2 * 10**9, room_bytes=8 * 10**9, where="this machine")
    lines = list(summary_lines([planned(measured=measured(kept=kept))], config_of("run", "shards"), 500))
    assert lines[1] == "resident in stage one: 1,234 pictures, 2 GB of 8 GB that this machine has left"


def test_what_is_written_is_told():
    config = config_of("run", "shards", runtime={"checkpoint_every": 40}, trackers=["tensorboard"])
    lines = list(written_lines([planned(measured=None), planned("teacher-2", num_done=40), planned("student")], config))
    files = "a checkpoint every 40 steps, model.safetensors and result.json at the end"
    assert lines[2:] == [
        "  teacher-1/: finished, stays as it is",
        f"  teacher-2/: goes on after step 40; {files}",
        f"  student/: {files}",
        "  trackers/: files of tensorboard",
    ]


def test_each_kind_is_timed_once_and_nothing_is_written(digits_shards, tmp_path, capsys, monkeypatch):
    timed = []
    monkeypatch.setattr(dry_run, "measure", lambda job, around: timed.append(job.name) or trial.measure(job, around))
    teachers = {"teachers": [{"seed": 1}, {"seed": 2}, {"seed": 1, "color_jitter": 1.0}]}
    config = config_of(tmp_path / "run", digits_shards, stage_one=teachers, optimization={"accumulation": 2})
    said = rehearse_config(config, capsys)
    assert timed == ["teacher-1", "student"]
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in said.splitlines() if line.startswith("│")]
    assert [row[:4] for row in rows] == [
        *([f"teacher-{number}", "one", "20", "0"] for number in (1, 2, 3)),
        ["student", "two", "20", "0"],
    ]
    assert rows[0][4:] == rows[2][4:]
    assert all(int(row[4].replace(",", "")) > 0 for row in rows)
    assert "title [b]" in said
    assert not (tmp_path / "run").exists()


def test_a_run_in_the_middle(digits_shards, tmp_path, capsys):
    config = config_of(tmp_path / "run", digits_shards, runtime={"checkpoint_every": 15})
    run(config)
    before = contents(tmp_path)
    said = rehearse_config(config, capsys)
    assert "time: about 0:00:00 in all" in said
    assert said.count("finished, stays as it is") == 2
    weights = tmp_path / "run" / "student" / "model.safetensors"
    weights.write_bytes(b"damaged" * 10)
    with pytest.raises(InputError, match=r"student/model\.safetensors: damaged"):
        rehearse_config(config, capsys)
    weights.write_bytes(before["run/student/model.safetensors"])
    assert contents(tmp_path) == before


def test_a_checkpoint_is_gone_on_with_and_read(digits_shards, tmp_path, capsys, monkeypatch):
    config = config_of(tmp_path / "run", digits_shards, runtime={"checkpoint_every": 15}, stages="one")
    monkeypatch.setattr("cbd_fast.training.engine.save_finished", lambda *_: 1 / 0)
    with suppress(ZeroDivisionError):
        run(config)
    said = rehearse_config(config, capsys)
    assert "teacher-1/: goes on after step 15" in said
    weights = tmp_path / "run" / "teacher-1" / "checkpoint-00000015" / "model.safetensors"
    weights.write_bytes(b"damaged" * 10)
    with pytest.raises(InputError, match=r"model\.safetensors: damaged"):
        rehearse_config(config, capsys)


def test_resident_pictures_without_room_are_refused(digits_shards, tmp_path, capsys, monkeypatch):
    config = config_of(tmp_path / "run", digits_shards, runtime={"resident": 1.0})
    assert "resident in stage two: 304 pictures" in rehearse_config(config, capsys)
    monkeypatch.setattr(trial, "available_bytes", lambda: 1000)
    with pytest.raises(InputError, match=r"304 resident pictures need .* GB, but this machine has only 1e-06 GB left"):
        rehearse_config(config, capsys)


def test_a_disk_without_room_is_refused(digits_shards, tmp_path, capsys, monkeypatch):
    config = config_of(tmp_path / "run", digits_shards, stages="one")
    usage = namedtuple("usage", "free")(100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    with pytest.raises(InputError, match=r"output: .*/run needs up to .* GB .*, but only 0\.0001 GB"):
        rehearse_config(config, capsys)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory"),
            r"teacher-1: 8 pictures of 32 x 32 at a time, with small_convnet, do not fit into the memory of the GPU; "
            r"raise optimization\.accumulation \(now 2\), or .* or set mixed_precision=bf16",
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "do not fit into the memory of this machine"),
    ],
)
def test_too_little_memory_is_told_in_plain_words(digits_shards, tmp_path, capsys, monkeypatch, error, message):
    def fail(*_):
        raise error

    monkeypatch.setattr(trial, "make_learner", fail)
    with pytest.raises(InputError, match=message):
        rehearse_config(config_of(tmp_path / "run", digits_shards, optimization={"accumulation": 2}), capsys)


def test_other_errors_stay_as_they_are(digits_shards, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(trial, "make_learner", lambda *_: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="size"):
        rehearse_config(config_of(tmp_path / "run", digits_shards), capsys)


def test_a_place_that_is_no_folder_is_refused(tmp_path):
    check_writable(tmp_path / "a" / "b")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/run cannot be written"):
        check_writable(tmp_path / "file" / "run")


def test_peak_memory_is_that_since_the_start():
    cpu = torch.device("cpu")
    trial.start_peak(cpu)
    before = trial.peak_bytes(cpu)
    block = torch.ones(50_000_000)
    del block
    assert 190e6 < trial.peak_bytes(cpu) - before < 400e6
    trial.start_peak(cpu)
    assert trial.peak_bytes(cpu) < before + 100e6


def test_the_rate_is_of_all_parts_after_the_first():
    """16 pictures a part; the clock is ours."""
    learned = []
    learner = SimpleNamespace(
        learn=lambda images, labels: learned.append(len(labels)),
        accelerator=SimpleNamespace(num_processes=1, device=torch.device("cpu")),
    )
    times = iter([0.0, 1.0, 2.0, 3.0, 4.0, 4.0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rehearsal.time, "perf_counter", lambda: next(times))
        rate = rehearsal.training_rate(learner, iter([(None, range(16))] * 100), 3.5, num_warm_up=2)
    assert len(learned) == 2 + 4
    assert rate == 4 * 16 / 4
