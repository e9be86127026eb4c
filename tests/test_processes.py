"""The place among processes that others have started."""

import os

import pytest

from cbd_fast.cli import train
from cbd_fast.errors import InputError
from cbd_fast.processes import check_launcher, number_among_started

SLURM_TASK = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0"}


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "PMI_", "MV2_", "TORCHELASTIC_", "ACCELERATE_")):
            monkeypatch.delenv(name)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "ENVIRONMENT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (SLURM_TASK, "SLURM_NTASKS=2: srun has started 2 processes"),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"}, "SLURM_STEP_NUM_TASKS=4: srun has started 4"),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, "SLURM_NTASKS=2"),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, "OMPI_COMM_WORLD_SIZE=2: mpirun has started 2"),
        ({"PMI_SIZE": "8"}, "PMI_SIZE=8: mpiexec has started 8"),
        ({"MV2_COMM_WORLD_SIZE": "2"}, "MV2_COMM_WORLD_SIZE=2"),
        # each task has a launcher of its own, which joins nobody
        (SLURM_TASK | {"WORLD_SIZE": "1", "RANK": "0", "TORCHELASTIC_RUN_ID": "none"}, "torchrun --nnodes NODES"),
        (SLURM_TASK | {"ACCELERATE_MIXED_PRECISION": "no"}, "srun with one process for each machine"),
    ],
)
def test_processes_that_know_nothing_of_each_other_are_refused(monkeypatch, environment, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message):
        check_launcher()


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_NTASKS": "8", "SLURM_JOB_ID": "1"},  # a shell of salloc
        {"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "ENVIRONMENT": "BATCH"},  # a batch script
        {"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"},
        {"SLURM_STEP_NUM_TASKS": "many", "SLURM_PROCID": "none"},
        SLURM_TASK | {"WORLD_SIZE": "2", "RANK": "1"},
        SLURM_TASK | {"WORLD_SIZE": "1"},  # each is to train alone
    ],
)
def test_a_process_alone_and_joined_ones_are_not(monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    check_launcher()
    assert number_among_started() >= 0


def test_tasks_are_refused_once(monkeypatch, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("output: run\ndata: {shards: s, num_classes: 2}\noptimization: {steps: 1}\n")
    for number, error in (("0", InputError), ("1", SystemExit)):
        for name, value in (SLURM_TASK | {"SLURM_PROCID": number}).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(error) as raised:
            train.main(["--config", str(config)])
        assert error is InputError or raised.value.code == 2
