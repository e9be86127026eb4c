import subprocess
import sys
import threading
import time

import pytest

from cbd_fast import files
from cbd_fast.errors import InputError
from cbd_fast.files import PARTIAL_SUFFIX, atomic_file, atomic_folder, locked_folder, write_atomically


def test_write_atomically_replaces(tmp_path):
    path = tmp_path / "a.txt"
    write_atomically(path, "old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_on_the_disk_before_it_has_its_name_and_then_the_name_is(tmp_path, monkeypatch):
    """Or after a power cut a result could say "finished" beside torn weights."""
    path, events, rename = tmp_path / "weights", [], files.os.replace
    monkeypatch.setattr(files, "fsync_path", lambda synced: events.append(("fsync", synced)))
    monkeypatch.setattr(files.os, "replace", lambda old, new: events.append(("rename", new)) or rename(old, new))
    with atomic_file(path) as temporary:
        temporary.write_bytes(b"1")
    assert events == [("fsync", temporary), ("rename", path), ("fsync", tmp_path)]


def test_after_an_error_the_old_file_is_there_and_nothing_else(tmp_path):
    path = tmp_path / "weights"
    path.write_text("old")

    def fail():
        with atomic_file(path) as temporary:
            temporary.write_text("ne")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [("weights", "old")]


def test_atomic_folder_appears_at_the_end(tmp_path):
    path = tmp_path / "out"
    with atomic_folder(path) as folder:
        (folder / "a").write_text("a")
        assert not path.exists()
    assert [entry.name for entry in path.iterdir()] == ["a"]


def test_atomic_folder_leaves_nothing_after_an_error(tmp_path):
    def fail():
        with atomic_folder(tmp_path / "new" / "deep" / "out") as folder:
            (folder / "a").write_text("a")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert not list(tmp_path.iterdir())


def test_atomic_folder_replaces_what_a_kill_left(tmp_path):
    left = tmp_path / f"out{PARTIAL_SUFFIX}"
    left.mkdir()
    (left / "half").write_text("half")
    with atomic_folder(tmp_path / "out") as folder:
        assert not list(folder.iterdir())


def test_a_locked_folder_stays_with_the_processes_of_a_killed_command(tmp_path):
    command = [sys.executable, "-c", "input()"]
    with locked_folder(tmp_path / "work"):
        child = subprocess.Popen(command, stdin=subprocess.PIPE, close_fds=False)
    began = time.monotonic()
    threading.Timer(0.3, child.communicate, (b"\n",)).start()
    with locked_folder(tmp_path / "work"):
        assert time.monotonic() - began > 0.3
        assert child.wait(1) == 0  # it had to end first


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


def test_a_folder_that_stays_locked_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("cbd_fast.files.LOCK_SECONDS", 0)
    with (
        locked_folder(tmp_path),
        pytest.raises(InputError, match="another command is writing there"),
        locked_folder(tmp_path),
    ):
        pass
