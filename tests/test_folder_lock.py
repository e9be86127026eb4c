import errno
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from cbd_fast import folder_lock
from cbd_fast.errors import InputError
from cbd_fast.folder_lock import LOCK_SUFFIX, locked_folder


@pytest.fixture(params=["locks", errno.ENOLCK, errno.ENOSYS, errno.EBADF, errno.EOPNOTSUPP])
def _any_file_system(request, monkeypatch):
    """With locks, and those that answer in one way or another that they have none."""

    def has_no_locks(*arguments):
        raise OSError(request.param, os.strerror(request.param))

    if request.param != "locks":
        monkeypatch.setattr("cbd_fast.folder_lock.fcntl.flock", has_no_locks)


def test_a_locked_folder_stays_with_the_processes_of_a_killed_command(tmp_path):
    command = [sys.executable, "-c", "input()"]
    with locked_folder(tmp_path / "work"):
        child = subprocess.Popen(command, stdin=subprocess.PIPE, close_fds=False)
    began = time.monotonic()
    threading.Timer(0.3, child.communicate, (b"\n",)).start()
    with locked_folder(tmp_path / "work"):
        assert time.monotonic() - began > 0.3
        assert child.wait(1) == 0  # it had to end first


def test_a_folder_may_be_given_back_with_its_process_whoever_lives_on(tmp_path):
    """A child that was forked, or started with all that is open, must not keep it from the next command."""
    with locked_folder(tmp_path / "work", with_children=False):
        started = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False)
        forked = os.fork()
        if not forked:
            time.sleep(60)
            os._exit(0)
        with pytest.raises(InputError, match="another command"), locked_folder(tmp_path / "work", wait_seconds=0):
            pass  # the child's end does not give it back either
    with locked_folder(tmp_path / "work", wait_seconds=0):
        pass
    os.kill(forked, 9)
    os.waitpid(forked, 0)
    started.communicate(b"\n")


@pytest.mark.usefixtures("_any_file_system")
def test_who_waits_for_a_folder_gets_the_one_that_is_there_then(tmp_path):
    path, is_held = tmp_path / "work", threading.Event()

    def first() -> None:
        with locked_folder(path):
            (path / "of the first").touch()
            is_held.set()
            time.sleep(0.3)
            path.rename(tmp_path / "done")

    thread = threading.Thread(target=first)
    thread.start()
    is_held.wait()
    with locked_folder(path):
        assert (tmp_path / "done" / "of the first").exists()
        assert list(path.iterdir()) == []
    thread.join()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["done", "work"]


@pytest.mark.usefixtures("_any_file_system")
def test_a_folder_that_stays_locked_is_refused_with_the_process_that_has_it(tmp_path):
    path = tmp_path / "work"
    message = rf"work: another command \(process {os.getpid()}.*\) is writing there; wait for it or end it"
    with locked_folder(path), pytest.raises(InputError, match=message), locked_folder(path, wait_seconds=0):
        pass
    with locked_folder(path, wait_seconds=0):
        pass


def _lock_file_of(path, **owner):
    path.with_name(path.name + LOCK_SUFFIX).write_text(json.dumps(owner))


@pytest.mark.parametrize("_any_file_system", [errno.ENOLCK], indirect=True)
@pytest.mark.usefixtures("_any_file_system")
def test_without_locks_a_killed_process_has_nothing(tmp_path):
    path = tmp_path / "work"
    me = folder_lock._as_owner(os.getpid())
    for dead in (me | {"process": 2**22 + 1}, me | {"start": 1.0}):  # gone, and another has its number
        _lock_file_of(path, **dead)
        with locked_folder(path, wait_seconds=0):
            pass


@pytest.mark.parametrize("_any_file_system", [errno.ENOLCK], indirect=True)
@pytest.mark.usefixtures("_any_file_system")
@pytest.mark.parametrize("owner", [{"host": "elsewhere", "process": 5, "start": 1.0}, {}])
def test_without_locks_a_process_of_another_machine_may_be_there(tmp_path, owner):
    path = tmp_path / "work"
    _lock_file_of(path, **owner)
    with pytest.raises(InputError, match=f"if it is there no more, remove {path}{LOCK_SUFFIX}"):
        locked_folder(path, wait_seconds=0).__enter__()
