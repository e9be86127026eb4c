"""What a dry run says and refuses, in this process; whole commands are in test_end_to_end.py."""

import shutil
from collections import namedtuple
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cbd_fast.errors import InputError
from cbd_fast.preflight import dry_run, probe
from cbd_fast.preflight.dry_run import (
    Evaluations,
    RemainingWork,
    check_writable,
    format_bytes,
    format_seconds,
    needed_disk_bytes,
    summary_lines,
    written_lines,
)
from cbd_fast.preflight.probe import CacheNeeds, ProbeResult
from cbd_fast.training.context import make_accelerator, open_context, open_shards
from cbd_fast.training.plan import models_to_train, plan_models
from cbd_fast.training.run_dir import NullRunDir
from cbd_fast.ui.dashboard import NullDashboard
from tests.helpers import config_of, digits_config, run_in_process, with_bad_images

pytestmark = pytest.mark.slow


def probed(**changed) -> ProbeResult:
    values = {
        "training_rate": 100.0,
        "evaluation_rate": 200.0,
        "peak_bytes": 1,
        "weight_bytes": 10,
        "optimizer_bytes": 8,
    }
    return ProbeResult(**{**values, "cache": None, **changed})


def work(name="teacher-1", num_steps=100, num_done=0, probe=probed()) -> RemainingWork:  # noqa: B008
    spec = SimpleNamespace(name=name, stage="teachers", num_steps=num_steps, folder=Path(name))
    return RemainingWork(spec=spec, num_done=num_done, probe=probe)


def dry_run_of(config, capsys) -> str:
    """What a dry run of a config prints."""
    shards = open_shards(config)
    specs = models_to_train(plan_models(config, shards), config.stages)
    with open_context(config, shards, make_accelerator(config), NullRunDir(), NullDashboard()) as context:
        dry_run.dry_run(specs, context, "title [b]")
    return capsys.readouterr().out


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(probe, "SECONDS", 0.01)


def contents(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_times():
    assert work().training_seconds(32) == 100 * 32 / 100
    assert work(num_done=75).training_seconds(32) == 25 * 32 / 100
    assert work().evaluation_seconds(Evaluations(500, None)) == 2.5
    # after 30, 60, 90 and 100 steps; the first two are done
    assert work().evaluation_seconds(Evaluations(500, 30)) == 4 * 2.5
    assert work(num_done=60).evaluation_seconds(Evaluations(500, 30)) == 2 * 2.5
    assert work(num_steps=90).evaluation_seconds(Evaluations(500, 30)) == 3 * 2.5  # the last is the one at the end
    # four times on the validation split, once on the test split
    assert work().evaluation_seconds(Evaluations(500, 30, 100)) == 4 * 0.5 + 2.5
    finished = work(probe=None)
    assert (finished.training_seconds(32), finished.evaluation_seconds(Evaluations(500, 30))) == (0, 0)
    config = digits_config("run", "shards", runtime={"evaluate_every": None})
    assert list(summary_lines([work(), work()], config, Evaluations(500))) == [
        "time: about 37 s in all, 5 s of it for evaluation"  # 2 * (100 * 16 / 100 + 2.5)
    ]


def test_room_on_the_disk():
    assert needed_disk_bytes([work()], 1000) == 10  # the model alone: it has no checkpoint
    assert needed_disk_bytes([work()], 100) == 10
    assert needed_disk_bytes([work()], 99) == 10 + 18
    assert needed_disk_bytes([work(), work()], 10) == 2 * 10 + 2 * 18  # two checkpoints, of one model at a time
    assert needed_disk_bytes([work(probe=None)], 10) == 0
    assert needed_disk_bytes([work()], 99, num_best=3) == 10 + 18 + 3 * 10


def test_the_cache_is_told():
    cache = CacheNeeds(num_images=1234, num_bytes=2 * 10**9, free_bytes=8 * 10**9, memory="this machine")
    lines = list(summary_lines([work(probe=probed(cache=cache))], digits_config("run", "shards"), Evaluations(500)))
    assert lines[1] == "decoded cache of the teachers: 1,234 images, 2 GB of 8 GB that this machine has left"


def test_what_is_written_is_told():
    config = digits_config("run", "shards", runtime={"checkpoint_every": 40}, trackers=["tensorboard"])
    lines = list(written_lines([work(probe=None), work("teacher-2", num_done=40), work("student")], config))
    assert lines[2:] == [
        "  teacher-2/, student/: model.safetensors, config.json, result.json; until then a checkpoint every 40 steps",
        "  teacher-1/ is finished and stays as it is",
        "  teacher-2/ goes on after step 40",
        "  trackers/: files of tensorboard",
    ]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59, "59 s"), (60, "1 min 0 s"), (441, "7 min 21 s"), (11359, "3 h 9 min"), (144075, "1 d 16 h")],
)
def test_times_in_words(seconds, words):
    assert format_seconds(seconds) == words


def test_sizes_in_words():
    assert (format_bytes(6_674_321), format_bytes(1_380_000_000), format_bytes(0)) == ("6.67 MB", "1.38 GB", "0 MB")


def test_each_kind_is_timed_once_and_nothing_is_written(digits_shards, tmp_path, capsys, monkeypatch):
    timed = []
    monkeypatch.setattr(
        dry_run, "probe_model", lambda spec, context: timed.append(spec.name) or probe.probe_model(spec, context)
    )
    teachers = {"teachers": [{"seed": 1}, {"seed": 2}, {"seed": 1, "color_jitter": 1.0}]}
    config = digits_config(tmp_path / "run", digits_shards, stage_one=teachers, optimization={"accumulation": 2})
    said = dry_run_of(config, capsys)
    assert timed == ["teacher-1", "student"]
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in said.splitlines() if line.startswith("│")]
    assert [row[:4] for row in rows] == [
        *([f"teacher-{number}", "teachers", "20", "0"] for number in (1, 2, 3)),
        ["student", "student", "20", "0"],
    ]
    assert rows[0][4:] == rows[2][4:]
    assert all(int(row[4].replace(",", "")) > 0 for row in rows)
    assert "title [b]" in said
    assert not (tmp_path / "run").exists()


def test_a_run_in_the_middle(digits_shards, tmp_path, capsys):
    config = digits_config(tmp_path / "run", digits_shards, runtime={"checkpoint_every": 15})
    run_in_process(config)
    before = contents(tmp_path)
    said = dry_run_of(config, capsys)
    assert "time: about 0 s in all" in said
    assert said.count("is finished and stays as it is") == 2
    weights = tmp_path / "run" / "student" / "model.safetensors"
    weights.write_bytes(b"damaged" * 10)
    with pytest.raises(InputError, match=r"student/model\.safetensors: damaged"):
        dry_run_of(config, capsys)
    weights.write_bytes(before["run/student/model.safetensors"])
    assert contents(tmp_path) == before


def test_a_checkpoint_is_gone_on_with_and_read(digits_shards, tmp_path, capsys, monkeypatch):
    config = digits_config(tmp_path / "run", digits_shards, runtime={"checkpoint_every": 15}, stages="teachers")
    monkeypatch.setattr("cbd_fast.training.training_state.save_finished", lambda *_: 1 / 0)
    with suppress(ZeroDivisionError):
        run_in_process(config)
    said = dry_run_of(config, capsys)
    assert "teacher-1/ goes on after step 15" in said
    weights = tmp_path / "run" / "teacher-1" / "checkpoint-00000015" / "model.safetensors"
    weights.write_bytes(b"damaged" * 10)
    with pytest.raises(InputError, match=r"model\.safetensors: damaged"):
        dry_run_of(config, capsys)


def test_bad_images_are_told_and_not_written(photo_shards, tmp_path, capsys):
    copy, _ = with_bad_images(photo_shards, tmp_path, 1)
    config = config_of(tmp_path / "run", copy, optimization={"global_batch": 16}, stages="teachers")
    said = dry_run_of(config, capsys)
    assert "bad images among the few that were read: 1, such as train-000000.tar:" in said
    assert not (tmp_path / "run").exists()


def test_a_cache_without_room_is_refused(digits_shards, tmp_path, capsys, monkeypatch):
    config = digits_config(tmp_path / "run", digits_shards, runtime={"cache": 1.0})
    assert "decoded cache of the student: 304 images" in dry_run_of(config, capsys)
    monkeypatch.setattr(probe, "available_bytes", lambda: 1000)
    with pytest.raises(InputError, match=r"304 cached images need .* GB, but this machine has only 1e-06 GB left"):
        dry_run_of(config, capsys)


def test_a_disk_without_room_is_refused(digits_shards, tmp_path, capsys, monkeypatch):
    config = digits_config(tmp_path / "run", digits_shards, stages="teachers")
    usage = namedtuple("usage", "free")(100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    with pytest.raises(InputError, match=r"output: .*/run needs up to .* MB .*, but only 0.1 MB"):
        dry_run_of(config, capsys)


@pytest.mark.gpu
def test_memory_of_a_gpu(digits_shards, tmp_path, capsys):
    config = digits_config(tmp_path / "run", digits_shards)
    assert "of each GPU's" in dry_run_of(config, capsys)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-5)
    try:
        with pytest.raises(InputError, match="do not fit into the memory of the GPU"):
            dry_run_of(config, capsys)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_place_that_is_no_folder_is_refused(tmp_path):
    check_writable(tmp_path / "a" / "b")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/run cannot be written"):
        check_writable(tmp_path / "file" / "run")
