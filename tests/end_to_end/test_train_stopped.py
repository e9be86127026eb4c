"""Trainings under launchers that end before them, and go on with another number of processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cbd_fast import Config, Trainer
from cbd_fast.errors import Stopped
from cbd_fast.ui.dashboard import NullDashboard
from tests.helpers import REPOSITORY, digits_config_file, images_read, metrics_of

BIN = Path(sys.executable).parent
ONE = [BIN / "accelerate", "launch", "--num_processes", "1"]
TWO = [BIN / "torchrun", "--standalone", "--nproc_per_node", "2"]
SECONDS = 120
STEPS = 400  # which no process comes to the end of


@pytest.fixture
def config(digits_shards, tmp_path) -> Path:
    return digits_config_file(
        tmp_path,
        digits_shards,
        stages="teachers",
        optimization={"steps": STEPS, "global_batch": 16},
        runtime={"log_every": 1, "checkpoint_every": 10**6, "record_batches": True, "num_threads": 1, "compile": False},
    )


class StopsAt(NullDashboard):
    """Sends this process a signal at a step."""

    def __init__(self, step):
        self.step = step

    def log(self, record):
        if record["step"] == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def start(launcher, config, errors) -> subprocess.Popen:
    command = [*launcher, "-m", "cbd_fast.train", "--config", config]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    with open(errors, "w") as file:
        streams = {"stdout": subprocess.DEVNULL, "stderr": file}
        return subprocess.Popen(command, cwd=REPOSITORY, env=environment, start_new_session=True, **streams)


def wait_for(condition, process=None):
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert process is None or process.poll() is None, "the launcher has ended"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def step_of(run) -> int:
    return metrics_of(run)[-1]["step"] if (run / "metrics.jsonl").exists() else 0


def checkpoint_of(run) -> int:
    return max((int(path.name[-8:]) for path in run.glob("teacher-1/checkpoint-????????")), default=0)


def messages(errors) -> list[str]:
    return [line for line in errors.read_text().splitlines() if line.startswith("stopped by")]


def test_a_training_ends_with_its_launcher_and_goes_on_with_other_processes(config, tmp_path):
    """One process, then two, then one: images, boxes and colours are those of an undisturbed run."""
    run, errors = tmp_path / "run", [tmp_path / "first.txt", tmp_path / "second.txt"]
    first = start(ONE, config, errors[0])
    wait_for(lambda: step_of(run) >= 3, first)
    first.kill()  # not its process, which notices it
    first.wait()
    second = start(TWO, config, errors[1])  # at once
    wait_for(lambda: checkpoint_of(run) >= 3, second)
    stopped_at = checkpoint_of(run)
    wait_for(lambda: messages(errors[0]))
    assert f"stopped by SIGTERM; teacher-1 is at step {stopped_at} of {STEPS}" in messages(errors[0])[0]

    wait_for(lambda: step_of(run) >= stopped_at + 3, second)
    workers = psutil.Process(second.pid).children()
    assert len(workers) == 2
    workers[1].send_signal(signal.SIGUSR1)  # only one of them
    second.wait(SECONDS)
    assert not any(worker.is_running() for worker in workers)
    last = checkpoint_of(run)
    assert stopped_at < last < STEPS
    assert len(messages(errors[1])) == 1
    assert f"stopped by SIGUSR1; teacher-1 is at step {last} of {STEPS}" in messages(errors[1])[0]

    settings = Config.from_file(config)
    for output in (run, tmp_path / "whole"):
        with pytest.raises(Stopped):
            Trainer(settings.model_copy(update={"output": str(output)}), dashboard=StopsAt(last + 5)).fit()
    assert images_read(run) == images_read(tmp_path / "whole")
    assert len(images_read(run)) == (last + 5) * 16
