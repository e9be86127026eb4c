"""Scripts of users: the examples as they are, and ``Trainer`` on the processes of both launchers."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import REPOSITORY

SCRIPT = """
import json, sys
import torch
from cbd_fast import Config, InputError, Trainer
from cbd_fast.processes import env_rank

shards, output = sys.argv[1:]
records = []
config = Config(
    output=output,
    data={"shards": shards, "num_classes": 10, "image_size": 32, "augmentation": {"crop": "pad_and_crop"}},
    model={"backbone": "small_convnet"},
    optimization={"steps": 4, "global_batch": 16},
    runtime={"num_threads": 1, "log_every": 2},
)
first = Trainer(config, listeners=[records.append]).fit(stages="teachers")
summary = Trainer(config, listeners=[records.append]).fit()  # the processes stay joined
try:
    Trainer(config.model_copy(update={"output": shards})).fit()
except InputError as error:
    refused = str(error)
print(json.dumps({"rank": env_rank(), "summary": summary, "num_records": len(records), "refused": refused,
                  "joined": torch.distributed.is_initialized()}), flush=True)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(*command: object, timeout: int = 240) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        list(map(str, command)), cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.parametrize("launcher", ["accelerate", "torchrun"])
def test_fit_on_two_processes_over_gloo(launcher, digits_shards, tmp_path):
    script, program = tmp_path / "script.py", Path(sys.executable).with_name(launcher)
    script.write_text(SCRIPT)
    options = {
        "accelerate": ["launch", "--multi_gpu", "--num_processes", 2, "--main_process_port", free_port()],
        "torchrun": ["--nproc_per_node", 2, "--master_port", free_port()],
    }[launcher]
    done = run(program, *options, script, digits_shards, tmp_path / "run")
    found = sorted(
        (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")), key=lambda one: one["rank"]
    )
    assert [one["rank"] for one in found] == [0, 1]
    assert found[0]["summary"] == found[1]["summary"] == json.loads((tmp_path / "run" / "summary.json").read_text())
    assert found[0]["summary"]["student"]["top1"] is not None
    assert (found[0]["num_records"] > 0, found[1]["num_records"]) == (True, 0)
    assert all("already holds something" in one["refused"] and one["joined"] for one in found)
    alone = run(sys.executable, script, digits_shards, tmp_path / "alone")
    single = json.loads(alone.stdout.splitlines()[-1])
    assert not single["joined"]
    assert set(single["summary"]["student"]) == set(found[0]["summary"]["student"])


def test_training_from_python(digits_shards, tmp_path):
    done = run(sys.executable, "examples/train_from_python.py", digits_shards, tmp_path / "run", 20)
    assert "% per-class mean" in done.stdout
    assert done.stdout.count(" is taken for a ") == 3


def test_the_balanced_loader(digits_shards):
    done = run(sys.executable, "examples/balanced_loader.py", digits_shards)
    assert "after 4 epochs of 4 batches" in done.stdout


def test_own_parts_on_the_command_line(tmp_path):
    plugin, shards = ("--plugin", "examples/own_parts.py"), tmp_path / "squares"
    made = run(sys.executable, "tools/make_shards.py", *plugin, "squares", "--largest", 24, "--out", shards)
    assert "│ train │       3 │     42 │" in made.stdout
    config = tmp_path / "config.yaml"
    config.write_text(
        f"output: {tmp_path / 'run'}\n"
        f"data: {{shards: {shards}, num_classes: 3, image_size: 32, augmentation: {{crop: pad_and_crop}}}}\n"
        "optimization: {steps: 4, global_batch: 8}\nruntime: {num_threads: 1}\n"
    )
    own = ["model.backbone=tiny", "stage_two.loss=focal", "stage_two.sampling=cube_root", "metrics=[top1, worst_class]"]
    run(sys.executable, "-m", "cbd_fast.train", "--config", config, *plugin, *own)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert set(summary["student"]) == {"top1", "worst_class"}
    without = subprocess.run(
        [sys.executable, "-m", "cbd_fast.train", "--config", str(config), *own],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert without.returncode == 2
    assert "model.backbone: must be one of" in without.stderr
