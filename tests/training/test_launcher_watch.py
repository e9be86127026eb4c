"""A training ends when its launcher does; whole launchers are in tests/end_to_end."""

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest

from cbd_fast.training import launcher_watch
from cbd_fast.training.launcher_watch import ends_with_launcher, find_launcher, is_launcher
from cbd_fast.training.stopping import Stops


@pytest.mark.parametrize(
    "command",
    [
        ["/venv/bin/python", "/venv/bin/torchrun", "--nproc_per_node", "2", "train.py"],
        ["/venv/bin/python", "/venv/bin/accelerate", "launch", "-m", "cbd_fast.train"],
        ["/venv/bin/python", "-u", "-X", "dev", "/venv/bin/accelerate", "launch", "-m", "cbd_fast.train"],
        ["python", "-m", "accelerate.commands.accelerate_cli", "launch", "--cpu", "-m", "cbd_fast.train"],
        ["python", "/venv/lib/site-packages/accelerate/commands/accelerate_cli.py", "launch", "train.py"],
        ["accelerate-launch", "train.py"],
        ["python", "-u", "-m", "torch.distributed.run", "train.py"],
        ["python", "-m", "torch.distributed.launch", "train.py"],
        ["python", "-m", "accelerate.commands.launch", "train.py"],
        ["python", "/venv/lib/site-packages/accelerate/commands/launch.py", "train.py"],
    ],
)
def test_launchers_are_known(command):
    assert is_launcher(command)


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["-bash"],
        ["bash", "-c", "torchrun --nproc_per_node 2 train.py"],  # which has a child that is one
        ["/venv/bin/python", "/venv/bin/accelerate", "config"],
        ["/venv/bin/python", "-m", "cbd_fast.train", "--config", "torchrun"],
        ["/venv/bin/cbd-fast", "train"],
        ["python", "my_tool.py", "torchrun"],
        ["vim", "torch/distributed/run.py.txt"],
    ],
)
def test_other_programs_are_none(command):
    assert not is_launcher(command)


def set_parents(monkeypatch, *parents):
    me = SimpleNamespace(parents=lambda: list(parents))
    monkeypatch.setattr(launcher_watch.psutil, "Process", lambda: me)


def process_of(*command):
    return SimpleNamespace(cmdline=lambda: list(command))


def hidden():
    def refuse():
        raise psutil.AccessDenied

    return SimpleNamespace(cmdline=refuse)


def test_the_launcher_may_be_further_up(monkeypatch):
    launcher = process_of("python", "/venv/bin/torchrun", "--no-python", "wrapper.sh")
    set_parents(monkeypatch, process_of("bash", "wrapper.sh"), hidden(), launcher, process_of("init"))
    assert find_launcher() is launcher


def test_without_a_launcher_nothing_is_watched(monkeypatch):
    """A training under nohup outlives its shell."""
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    set_parents(monkeypatch, process_of("-bash"), process_of("sshd"))
    assert find_launcher() is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")  # a script that uses the launcher from Python
    assert find_launcher().cmdline() == ["-bash"]


def watched(monkeypatch, launcher):
    monkeypatch.setattr(launcher_watch, "find_launcher", lambda: launcher)
    monkeypatch.setattr(launcher_watch, "LOOK_EVERY_SECONDS", 0.02)
    stops = Stops()
    stops.defer()
    with ends_with_launcher(stops):
        launcher.kill()
        launcher_watch.threading.Event().wait(0.3)  # it stays as a zombie, which counts as gone
        return stops.agree().signum


def test_a_training_stops_when_its_launcher_is_killed(monkeypatch):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert watched(monkeypatch, psutil.Process(process.pid)) == signal.SIGTERM
    process.communicate()


def test_it_goes_on_as_long_as_the_launcher_does(monkeypatch):
    monkeypatch.setattr(launcher_watch, "find_launcher", lambda: psutil.Process(os.getppid()))
    stops = Stops()
    with ends_with_launcher(stops):
        assert stops.agree().signum == 0
    assert not [thread for thread in launcher_watch.threading.enumerate() if thread.name == "cbd-launcher"]


def test_a_launcher_that_ended_during_the_imports_is_noticed(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setattr(launcher_watch, "PARENT", -1)
    set_parents(monkeypatch, process_of("init"))
    stops = Stops()
    with ends_with_launcher(stops):
        launcher_watch.threading.Event().wait(0.2)
        assert stops.agree().signum == signal.SIGTERM


def test_what_does_not_stop_in_time_is_ended(monkeypatch):
    """Such as a process that waits for others which are gone."""
    child = os.fork()
    if not child:
        monkeypatch.setattr(launcher_watch, "GRACE_SECONDS", 0.1)
        monkeypatch.setattr(launcher_watch, "find_launcher", lambda: None)
        monkeypatch.setattr(launcher_watch, "_has_lost_launcher", lambda: True)
        with ends_with_launcher(Stops()):
            launcher_watch.threading.Event().wait(30)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + signal.SIGTERM
