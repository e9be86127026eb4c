"""Whole commands, as users type them."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cbd_fast import Loader
from cbd_fast.config.schema import Config
from cbd_fast.shards.reader import ShardReader
from cbd_fast.training.trackers import tracked_values
from tests.helpers import REPOSITORY, digits_config_file, images_read, read_lines, scalars

LAUNCH = [str(Path(sys.executable).with_name("accelerate")), "launch"]
ON_CPU = os.environ | {"ACCELERATE_USE_CPU": "true"}
LAUNCH_TWO = [*LAUNCH, "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]


def train(config, *overrides, launcher=(sys.executable,), **options):
    command = [*launcher, "-m", "cbd_fast.train", "--config", str(config), *overrides]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, **options)


@pytest.fixture
def config(digits_shards, tmp_path) -> Path:
    """A short run of both stages with two teachers."""
    return digits_config_file(
        tmp_path,
        digits_shards,
        optimization={"steps": 12, "global_batch": 16, "accumulation": 2},
        stage_one={"teachers": [{"seed": 1}, {"seed": 1, "color_jitter": 1.0}]},
        runtime={"log_every": 4, "checkpoint_every": 5, "record_batches": True},
    )


def test_one_and_two_processes_and_a_killed_run_read_the_same(config, tmp_path):
    whole, pair, killed = (tmp_path / name for name in ("whole", "pair", "killed"))
    done = train(config, f"output={whole}", launcher=LAUNCH)
    assert done.returncode == 0, done.stderr
    done = train(config, f"output={pair}", launcher=LAUNCH_TWO, env=ON_CPU)
    assert done.returncode == 0, done.stderr
    kill_after_checkpoint(config, killed, killed / "student")
    done = train(config, f"output={killed}", launcher=LAUNCH_TWO, env=ON_CPU)
    assert done.returncode == 0, done.stderr
    assert "student: goes on after step" in done.stdout

    expected = images_read(whole)
    assert len(expected) == 3 * 12 * 16
    assert images_read(pair) == expected
    assert len(read_lines(pair / "batches.rank-1.jsonl")[0]["indices"]) == 8
    # killed with one process, gone on with two, in the middle of an epoch (of 19 steps)
    assert images_read(killed) == expected
    assert len(read_lines(killed / "batches.rank-1.jsonl")) in (12 - 5, 12 - 10)

    for run in (whole, pair, killed):
        summary = json.loads((run / "summary.json").read_text())
        assert len(summary["teachers"]) == 2
        for metrics in (*summary["teachers"], summary["student"]):
            assert list(metrics) == ["top1", "top5", "per_class_mean", "many", "medium", "few"]
            assert all(0 <= value <= 100 for value in metrics.values())
        assert {path.name for path in run.iterdir()} >= {"config.yaml", "metrics.jsonl", "per_class.csv", "student"}
        logged = [(line["model"], line["step"]) for line in read_lines(run / "metrics.jsonl") if "loss" in line]
        assert logged == [(model, step) for model in ("teacher-1", "teacher-2", "student") for step in (4, 8, 12)]
        # an exact evaluation: 50 images of each class, whatever the number of processes
        result = json.loads((run / "student" / "result.json").read_text())
        assert result["counts"][0] == [50] * 10


def kill_after_checkpoint(config, output, folder):
    """Starts a run and kills it once a model has a checkpoint, after 5 or 10 of 12 steps."""
    command = [sys.executable, "-m", "cbd_fast.train", "--config", str(config), f"output={output}"]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list(folder.glob("checkpoint-*[05]")):
        assert process.poll() is None, "the run ended before its checkpoint was seen"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (output / "summary.json").exists()


def test_one_stage_after_the_other(config, tmp_path):
    run = tmp_path / "run"
    done = train(config, "stages=student")
    assert done.returncode == 2
    assert "holds no finished teacher" in done.stderr
    assert not run.exists()
    assert train(config, "stages=teachers", "trackers=[tensorboard]").returncode == 0
    assert json.loads((run / "summary.json").read_text())["student"] is None
    done = train(config, "stages=student", "trackers=[tensorboard]")
    assert done.returncode == 0
    check_trackers_have_all_that_was_logged(run)
    assert "teacher-1 is finished already" in done.stdout
    assert json.loads((run / "summary.json").read_text())["student"]["top1"] > 0
    assert "\x1b" not in done.stdout
    assert "│ student   │   12 │" in done.stdout
    # a stage of its own does not lose what the other has done
    before = (run / "summary.json").read_text()
    assert train(config, "stages=teachers").returncode == 0
    assert (run / "summary.json").read_text() == before


def test_a_teacher_of_another_run_is_used(config, tmp_path):
    assert train(config, "stages=teachers").returncode == 0
    copy = tmp_path / "other" / "teacher-1"
    shutil.copytree(tmp_path / "run" / "teacher-2", copy)
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    check_refusal(train(config, f"output={copy.parent}"), "was trained with other settings")
    done = train(config, f"output={copy.parent}", "stage_one.teachers=[{seed: 1, color_jitter: 1.0}]")
    assert done.returncode == 0, done.stderr
    assert "teacher-1 is finished already" in done.stdout
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


def check_trackers_have_all_that_was_logged(run):
    found = scalars(run / "trackers" / "cbd_fast")
    logged = read_lines(run / "metrics.jsonl")
    assert len(logged) == 3 * (3 + 1)
    for record in logged:
        for name, value in tracked_values(record):
            assert (record["step"], pytest.approx(value, rel=1e-6)) in found[name]
    assert {"teacher-2/loss", "student/distillation_loss", "student/test/top1"} <= found.keys()
    assert [step for step, _ in found["student/loss"]] == [4, 8, 12]


def test_bf16_under_the_launcher(config):
    done = train(config, "mixed_precision=bf16", "stage_one.teachers=[{seed: 1}]", launcher=LAUNCH)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.num_classes=7"], "data.num_classes: 7, but .* has 10 classes"),
        (["data.shards=nowhere"], "nowhere: is not a folder"),
        (["output=README.md/run"], "output: README.md/run cannot be written"),
        (["output=" + 300 * "x"], "cannot be used"),
        (["optimization.accumulation=16"], "fewer than 2 images, too few for batch-norm"),
        (["optimization.epoch=3"], r"optimization\.epoch: no such setting"),
        (["trackers=[tensorbord]"], "no tracker is called 'tensorbord'; known are .*tensorboard, "),
        (["model.backbone=alexnet"], r"model\.backbone: must be one of resnet18, .*, not 'alexnet'"),
    ],
)
def test_bad_configs_end_with_2_and_write_nothing(config, tmp_path, overrides, message):
    check_refusal(train(config, *overrides), message)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml"]


def check_refusal(done, message):
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    assert re.search(message, done.stderr)


def test_an_output_that_is_no_run_is_refused(config, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "config.yaml").write_text("latex: true")
    for folder, result in (("of/teacher-1", {"grade": 1}), ("list/teacher-1", [1]), ("other/model", {"identity": {}})):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "result.json").write_text(json.dumps(result))
    for output, message in (
        ("thesis", "already holds something that is no run"),
        ("of", "already holds something that is no run"),
        ("list", r"teacher-1/result\.json: damaged \(no JSON object\)"),
        ("other", "already holds something that is no run"),
        ("config.yaml", "cannot be used"),
    ):
        check_refusal(train(config, f"output={tmp_path / output}"), message)
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["config.yaml"]
    assert (tmp_path / "thesis" / "config.yaml").read_text() == "latex: true"


def test_shards_that_lack_a_test_tar_are_refused(config, tmp_path, digits_shards):
    copy = shutil.copytree(digits_shards, tmp_path / "shards")
    (copy / "test-000000.tar").unlink()
    done = train(config, f"data.shards={copy}")
    assert done.returncode == 2
    assert "test-000000.tar: missing" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_run_survives_bad_images_and_evaluates_all_others(config, tmp_path, digits_shards):
    copy = shutil.copytree(digits_shards, tmp_path / "shards")
    for split, row in (("train", 3), ("test", 7)):
        shards = ShardReader(copy, split)
        with open(shards.paths[0], "r+b") as file:
            file.seek(int(shards.index.entries["offset"][row]) + 60)
            file.write(b"damage")
    output = tmp_path / "run [b]"  # brackets are no markup
    done = train(config, f"data.shards={copy}", f"output={output}", launcher=LAUNCH_TWO, env=ON_CPU)
    assert done.returncode == 0, done.stderr
    assert "bad image test-000000.tar:" in done.stdout
    for model in ("teacher-1", "teacher-2", "student"):
        result = json.loads((output / model / "result.json").read_text())
        assert result["counts"][0] == [49, *[50] * 9]
    listed = [line for path in output.glob("bad_images.rank-*.jsonl") for line in read_lines(path)]
    assert {line["image"].split(":")[0] for line in listed} >= {"test-000000.tar"}
    assert all("crc32" in line["reason"] for line in listed)


def test_batches_that_processes_cannot_share_are_refused(config, tmp_path):
    environment = os.environ | {"WORLD_SIZE": "3", "RANK": "0"}
    done = train(config, env=environment)
    assert done.returncode == 2
    assert "16 is not a multiple of 3 processes x accumulation 2 = 6" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("joins", [True, False])
def test_a_bare_loop_in_two_processes(photo_shards, tmp_path, joins):
    """Without the trainer: the loader finds its place by itself, whether the processes are joined or only launched."""
    script = tmp_path / "loop.py"
    script.write_text(f"""
import json, os, torch
from cbd_fast import Loader

if {joins}:
    torch.distributed.init_process_group("gloo")
loader = Loader({str(photo_shards)!r}, sampling="class_balanced", batch_size=6, image_size=32, device="cpu")
with open({str(tmp_path)!r} + "/" + os.environ["RANK"] + ".json", "w") as file:
    json.dump([batch.ids.tolist() for batch in loader], file)
if {joins}:
    torch.distributed.destroy_process_group()
""")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    parts = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    with Loader(photo_shards, sampling="class_balanced", batch_size=6, image_size=32, device="cpu") as loader:
        assert [first + second for first, second in zip(*parts, strict=True)] == [b.ids.tolist() for b in loader]


def test_help_lists_every_setting_at_the_width_of_the_screen(config):
    for columns in (100, 80):
        done = train(config, "--help", env=os.environ | {"COLUMNS": str(columns)})
        assert done.returncode == 0
        assert "--dry-run" in done.stdout
        assert "  stage_two.alpha: number (default 0.4)\n      weight of distillation" in done.stdout
        assert max(map(len, done.stdout.splitlines())) <= columns


def test_printed_settings_can_be_run_again(config, tmp_path):
    done = train(config, "seed=3", "--print-config", "stages=teachers")
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml"]
    again = tmp_path / "again.yaml"
    again.write_text(done.stdout)
    assert Config.from_file(again) == Config.from_file(config, ["seed=3", "stages=teachers"])


def test_a_dry_run_in_two_processes_says_it_all_once_and_writes_nothing(config, tmp_path):
    done = train(config, "--dry-run", "trackers=[tensorboard]", launcher=LAUNCH_TWO, env=ON_CPU)
    assert done.returncode == 0, done.stderr
    for part in (
        "2 x CPU",
        "│ teacher-1 │ teachers │",
        "│ student   │  student │",
        "memory: ",
        "disk: ",
        "trackers/: files of tensorboard",
    ):
        assert done.stdout.count(part) == 1, part
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout[done.stdout.index("┏") : done.stdout.index("time: ")].splitlines())) <= 80
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml"]


def test_a_dry_run_refuses_what_a_run_would(config, tmp_path):
    check_refusal(train(config, "--dry-run", "output=README.md/run"), "output: README.md/run cannot be written")
    check_refusal(train(config, "--dry-run", "stages=student"), "holds no finished teacher")
    check_refusal(train(config, "--dry-run", "runtime.cache_on_gpu=yes", "runtime.cache=0.1"), "cache_on_gpu")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml"]
