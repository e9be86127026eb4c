"""Trainings that a signal stops: the checkpoint is there, and going on ends like an undisturbed run."""

import json
import os
import resource
import signal
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cbd_fast import InputError, Trainer
from cbd_fast.errors import Stopped
from cbd_fast.folder_lock import locked_folder
from cbd_fast.training import meter, trainer
from cbd_fast.training.checkpoint import checkpoints
from cbd_fast.ui.dashboard import NullDashboard
from tests import helpers
from tests.helpers import metrics_of, run_in_process
from tests.training import joined

pytestmark = pytest.mark.slow

RUNTIME = {"checkpoint_every": 1000, "evaluate_every": 3, "num_threads": 1, "log_every": 1}
TIMES = {"images_per_second", "data_wait_fraction", "batch_milliseconds", "memory_gigabytes"}


def config_of(output, shards, **runtime):
    return helpers.config_of(output, shards, optimization={"steps": 8}, runtime=RUNTIME | runtime)


def kill(signum):
    os.kill(os.getpid(), signum)


class SignalAt(NullDashboard):
    """Sends this process a signal when a line is shown, or a model begins."""

    def __init__(self, signum, model, step, *, times=1):
        self.signum, self.at, self.times = signum, (model, step), times

    def log(self, record):
        if (record["model"], record["step"]) == self.at:
            for _ in range(self.times):
                kill(self.signum)

    def begin(self, model, step):
        if (model, None) == self.at:
            kill(self.signum)


def outcome(output):
    """All that must be the same in the end."""
    weights = {path.parent.name: load_file(path) for path in Path(output).glob("*/model.safetensors")}
    records = [{name: value for name, value in record.items() if name not in TIMES} for record in metrics_of(output)]
    return weights, records


@pytest.fixture(scope="module")
def undisturbed(photo_shards, tmp_path_factory):
    output = tmp_path_factory.mktemp("undisturbed")
    run_in_process(config_of(output, photo_shards))
    return outcome(output)


def check_goes_on(config, expected):
    run_in_process(config)
    weights, records = outcome(config.output)
    assert records == expected[1]
    for model, tensors in expected[0].items():
        assert all(torch.equal(tensor, weights[model][name]) for name, tensor in tensors.items())
    assert not list(Path(config.output).glob("*/checkpoint-*"))


@pytest.mark.parametrize(
    ("signum", "model", "step"),
    [
        (signal.SIGTERM, "teacher-1", 1),
        (signal.SIGINT, "teacher-1", 3),  # after which there is an evaluation
        (signal.SIGUSR1, "student", 5),
        (signal.SIGHUP, "student", 7),
    ],
)
def test_the_step_ends_and_there_is_a_checkpoint(photo_shards, tmp_path, undisturbed, signum, model, step):
    config = config_of(tmp_path, photo_shards)
    before = signal.getsignal(signum)
    with pytest.raises(Stopped) as raised:
        run_in_process(config, SignalAt(signum, model, step))
    assert signal.getsignal(signum) == before
    assert str(raised.value) == (
        f"stopped by {signum.name}; {model} is at step {step} of 8, and the same command goes on from there"
    )
    assert [path.name for path in checkpoints(tmp_path / model)] == [f"checkpoint-{step:08d}"]
    check_goes_on(config, undisturbed)


@pytest.mark.parametrize(("number", "model", "step"), [(1, "teacher-1", 3), (3, "teacher-1", 8), (5, "student", 6)])
def test_an_evaluation_is_interrupted_and_done_again(
    photo_shards, tmp_path, monkeypatch, undisturbed, number, model, step
):
    config, plain, calls = config_of(tmp_path, photo_shards), meter.predict_split, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == number:
            kill(signal.SIGTERM)
        return plain(*arguments)

    monkeypatch.setattr(meter, "predict_split", interrupted)
    with pytest.raises(Stopped, match=f"{model} is at step {step} of 8"):
        run_in_process(config)
    assert [path.name for path in checkpoints(tmp_path / model)] == [f"checkpoint-{step:08d}"]
    check_goes_on(config, undisturbed)


@pytest.mark.parametrize("model", ["teacher-1", "student"])
def test_between_two_models_a_training_ends_at_once(photo_shards, tmp_path, undisturbed, model):
    config = config_of(tmp_path, photo_shards)
    with pytest.raises(Stopped, match="stopped by SIGTERM; give the same command again"):
        run_in_process(config, SignalAt(signal.SIGTERM, model, None))
    assert (tmp_path / "teacher-1" / "result.json").exists() == (model == "student")
    assert not list(tmp_path.glob("student/*"))
    check_goes_on(config, undisturbed)


def test_a_second_ctrl_c_writes_nothing_more(photo_shards, tmp_path, undisturbed):
    config = config_of(tmp_path, photo_shards)
    with pytest.raises(KeyboardInterrupt) as raised:
        run_in_process(config, SignalAt(signal.SIGINT, "teacher-1", 4, times=2))
    assert not isinstance(raised.value, Stopped)
    assert not checkpoints(tmp_path / "teacher-1")
    check_goes_on(config, undisturbed)


def test_a_full_disk_is_named_and_loses_nothing(photo_shards, tmp_path, undisturbed):
    config, limits = config_of(tmp_path, photo_shards, checkpoint_every=2), resource.getrlimit(resource.RLIMIT_FSIZE)

    class Fills(NullDashboard):
        def log(self, record):
            if (record["model"], record["step"]) == ("teacher-1", 5):
                resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, limits[1]))

    try:
        with pytest.raises(OSError, match="File too large") as raised:
            run_in_process(config, Fills())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(tmp_path / "teacher-1") in raised.value.filename
    assert sorted(path.name for path in tmp_path.glob("teacher-1/*")) == ["checkpoint-00000002", "checkpoint-00000004"]
    check_goes_on(config, undisturbed)


def test_a_thread_trains_and_leaves_signals_alone(photo_shards, tmp_path):
    config, handlers = config_of(tmp_path, photo_shards), []

    class Looks(NullDashboard):
        def log(self, record):
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run_in_process, args=(config, Looks()))
    before = signal.getsignal(signal.SIGTERM)
    thread.start()
    thread.join()
    assert set(handlers) == {before}
    assert (tmp_path / "summary.json").exists()


@pytest.mark.parametrize("number", [1, 3])  # an evaluation in between, and the last one
def test_two_processes_stop_together_when_one_gets_the_signal(photo_shards, tmp_path, number):
    config = config_of(tmp_path, photo_shards, decoder="torch")
    plain, calls = meter.predict_split, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == number:
            kill(signal.SIGTERM)
        return plain(*arguments)

    def stopped(rank):
        if rank == 1:
            meter.predict_split = interrupted
        try:
            Trainer(config, dashboard=NullDashboard()).fit()
        except Stopped as error:
            return str(error)

    def goes_on(rank):
        return Trainer(config, dashboard=NullDashboard()).fit()

    found = joined.run_joined(stopped)
    assert found[0] == found[1]
    assert found[0].startswith("stopped by SIGTERM")
    assert len(checkpoints(tmp_path / "teacher-1")) == (number == 1)  # which asks again at the next step
    found = joined.run_joined(goes_on)
    assert found[0] == found[1] == json.loads((tmp_path / "summary.json").read_text())


def test_a_second_training_in_the_same_folder_is_refused(photo_shards, tmp_path, monkeypatch):
    monkeypatch.setattr("cbd_fast.folder_lock.LOCK_SECONDS", 0.1)
    config = config_of(tmp_path, photo_shards)

    class TriesToo(NullDashboard):
        refusal = ""

        def log(self, record):
            if (record["model"], record["step"]) == ("teacher-1", 2):
                before = sorted(path.name for path in tmp_path.rglob("*"))
                with pytest.raises(InputError, match=rf"another command \(process {os.getpid()}\) is writing there"):
                    Trainer(config.model_copy(update={"seed": 1}), dashboard=NullDashboard()).fit()
                assert sorted(path.name for path in tmp_path.rglob("*")) == before
                TriesToo.refusal = "seen"

    run_in_process(config, TriesToo())
    assert TriesToo.refusal
    with locked_folder(tmp_path, wait_seconds=0):  # given back
        pass


def test_whoever_waited_for_a_folder_looks_at_it_again(photo_shards, tmp_path, monkeypatch):
    """Two runs of other seeds that are begun at once must not become one."""

    plain, config = trainer.locked_output, config_of(tmp_path, photo_shards)

    @contextmanager
    def waits(folder):
        with plain(folder):
            pass
        monkeypatch.setattr(trainer, "locked_output", plain)
        Trainer(config, dashboard=NullDashboard()).fit("teachers")  # meanwhile, by somebody else
        with plain(folder):
            yield

    monkeypatch.setattr(trainer, "locked_output", waits)
    other = config.model_copy(update={"seed": 5})
    with pytest.raises(InputError, match="teacher-1 was trained with other settings"):
        Trainer(other, dashboard=NullDashboard()).fit()
    assert "seed: 0" in (tmp_path / "config.yaml").read_text()
