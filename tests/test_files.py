import errno
import os
import stat

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from cbd_fast import files
from cbd_fast.errors import InputError, describe_os_error
from cbd_fast.files import PARTIAL_SUFFIX, atomic_file, atomic_folder, expanded, write_atomically


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


def test_modes_follow_the_umask(tmp_path):
    """Some libraries, safetensors among them, make files that nobody else may read."""
    before = os.umask(0o027)
    try:
        with atomic_folder(tmp_path / "folder") as folder:
            save_file({"a": torch.zeros(1)}, folder / "weights")
        with atomic_file(tmp_path / "file") as temporary:
            save_file({"a": torch.zeros(1)}, temporary)
    finally:
        os.umask(before)
    for path in (tmp_path / "folder" / "weights", tmp_path / "file"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_file_systems_that_cannot_bring_folders_to_the_disk(tmp_path, monkeypatch, code):
    fsync = os.fsync

    def fsync_files_only(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    monkeypatch.setattr("cbd_fast.files.os.fsync", fsync_files_only)
    with atomic_folder(tmp_path / "out") as folder:
        write_atomically(folder / "a", "1")
    assert (tmp_path / "out" / "a").read_text() == "1"


def test_a_disk_that_fails_is_no_such_file_system(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("cbd_fast.files.os.fsync", fail)
    with pytest.raises(OSError, match="Input/output error") as raised:
        write_atomically(tmp_path / "a", "1")
    assert raised.value.errno == errno.EIO
    assert not list(tmp_path.iterdir())


FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded", "temporary"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    OSError("1000000 requested and 4096 written"),  # NumPy's
]


@pytest.mark.parametrize("error", FULL, ids=range(len(FULL)))
def test_a_full_disk_is_told_with_the_file_and_what_is_missing(tmp_path, error):
    path = tmp_path / "weights"
    with pytest.raises(OSError, match=r"needs 25.0 MB, .* MB left there") as raised, atomic_file(path, 25_000_000):
        raise error
    assert raised.value.errno in (errno.ENOSPC, errno.EDQUOT)
    assert describe_os_error(raised.value).startswith(f"{path}: ")
    assert not list(tmp_path.iterdir())


def test_what_is_no_error_of_the_disk_stays_what_it_is(tmp_path):
    with pytest.raises(SafetensorError, match="bad shape"), atomic_file(tmp_path / "weights"):
        raise SafetensorError("bad shape")


def test_paths_are_expanded_as_people_write_them(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DATA", "/mnt")
    monkeypatch.delenv("NOT_SET", raising=False)
    assert expanded("~/$DATA/a") == "/home/me//mnt/a"
    assert expanded("a~/$NOT_SET") == "a~/$NOT_SET"  # a name like any other
    with pytest.raises(InputError, match="the environment variable NOT_SET is not set"):
        expanded("${NOT_SET}/a")
    with pytest.raises(InputError, match="there is no such user"):
        expanded("~nobody_of_that_name/a")
