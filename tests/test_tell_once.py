"""Who of several processes tells the person what went wrong; of joined ones see training/test_peers.py."""

import socket
import subprocess
import sys

import pytest

from cbd_fast import tell_once
from cbd_fast.tell_once import what_to_tell


def set_rank(monkeypatch, rank, port=None):
    for name, value in {"WORLD_SIZE": 2, "RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    for name in ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE"):
        monkeypatch.delenv(name, raising=False)
    if port is not None:
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(port))


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(tell_once, "ALONE_SECONDS", 0.5)


def test_a_process_alone_tells_what_it_has_found():
    assert what_to_tell("no such folder") == "no such folder"


def test_the_first_process_tells_at_once_and_others_later(monkeypatch):
    set_rank(monkeypatch, 0)
    assert what_to_tell("no such folder") == "no such folder"
    set_rank(monkeypatch, 1)
    assert what_to_tell("no such folder") == "process 1: no such folder"
    assert what_to_tell("process 0 is gone; ...") == "process 0 is gone; ..."


@pytest.mark.parametrize(("message", "told"), [("no such folder", None), ("disk full", "process 1: disk full")])
def test_what_the_first_has_told_is_not_told_again(monkeypatch, port, message, told):
    code = "from cbd_fast.tell_once import what_to_tell; print(what_to_tell('no such folder'))"
    set_rank(monkeypatch, 0, port)
    first = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    set_rank(monkeypatch, 1, port)
    monkeypatch.setattr(tell_once, "ALONE_SECONDS", 10.0)
    assert what_to_tell(message) == told
    assert first.communicate(timeout=10)[0] == "no such folder\n"


def test_where_nobody_answers_or_listens_it_is_told(monkeypatch, port):
    set_rank(monkeypatch, 1, port)
    assert what_to_tell("disk full") == "process 1: disk full"
    with socket.create_server(("127.0.0.1", port)):
        set_rank(monkeypatch, 0, port)
        assert what_to_tell("disk full") == "disk full"


def test_a_process_that_its_launcher_ends_meanwhile_tells_nothing(monkeypatch):
    set_rank(monkeypatch, 1)

    def interrupted(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(tell_once.time, "sleep", interrupted)
    assert what_to_tell("no such folder") is None
