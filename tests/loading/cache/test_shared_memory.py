import errno
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from cbd_fast.loading.cache import turns
from cbd_fast.loading.cache.shared_memory import SharedMemory

PROGRAM = """
import sys, time
from cbd_fast.loading.cache.shared_memory import SharedMemory

def fill(data, on_progress):
    print("filling", flush=True)
    {filling}
    data.fill_(7)

def show(done, total):
    print("done", done, total, flush=True)

block = SharedMemory({name!r}, 1000, fill, show)
print("sum", int(block.data.sum()), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def name(request):
    """A name that no other test or run of tests has."""
    return f"{os.getpid():x}{abs(hash(request.node.name)):x}"


def start(name, filling="pass"):
    program = PROGRAM.format(name=name, filling=filling)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", program], **pipes)


def notes(name):
    return list(Path(tempfile.gettempdir()).glob(f"cbd_fast-*-{name}"))


def test_the_second_finds_what_the_first_filled(name):
    first = start(name)
    assert [first.stdout.readline() for _ in range(2)] == ["filling\n", "sum 7000\n"]
    second = start(name)
    assert second.stdout.readline() == "sum 7000\n"
    first.communicate()  # the memory stays with the second
    third = SharedMemory(name, 1000, lambda data, _: data.fill_(1), print)
    assert not third.is_mine
    second.kill()
    second.wait()
    fourth = SharedMemory(name, 1000, lambda data, _: data.fill_(1), print)
    assert int(fourth.data.sum()) == 7000
    third.close()
    fourth.close()
    assert not notes(name)
    start(name).communicate()
    assert not notes(name)  # though that process never closed its block


def test_who_waits_sees_progress_too(name):
    first = start(name, "on_progress(30, 100); sys.stdin.readline()")
    assert [first.stdout.readline() for _ in range(2)] == ["filling\n", "done 30 100\n"]
    second = start(name)
    assert second.stdout.readline() == "done 30 100\n"
    first.stdin.write("go on\n")
    first.stdin.flush()
    lines = iter(second.stdout.readline, "")
    assert next(line for line in lines if not line.startswith("done")) == "sum 7000\n"
    first.communicate()
    second.communicate()


def test_a_block_of_another_size_is_another(name):
    first = start(name)
    assert [first.stdout.readline() for _ in range(2)] == ["filling\n", "sum 7000\n"]
    mine = SharedMemory(name, 500, lambda data, _: data.fill_(1), print)
    assert len(mine.data) == 500
    mine.close()
    first.communicate()


def test_a_process_killed_while_it_fills_leaves_nothing_that_is_taken_for_whole(name):
    first = start(name, "data[:500] = 1; time.sleep(600)")
    assert first.stdout.readline() == "filling\n"
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = start(name)
    assert [second.stdout.readline() for _ in range(2)] == ["filling\n", "sum 7000\n"]
    second.communicate()


def test_where_filling_fails_the_next_one_tries(name):
    def fail(data, on_progress):
        raise OSError("no such image")

    with pytest.raises(OSError, match="no such image"):
        SharedMemory(name, 1000, fail, print)
    block = SharedMemory(name, 1000, lambda data, _: data.fill_(2), print)
    assert block.is_mine
    assert int(block.data.sum()) == 2000
    again = SharedMemory(name, 1000, fail, print)  # in the same process
    assert not again.is_mine
    again.data[0] = 9
    assert block.data[0] == 9
    kept = block.data[:4]
    block.close()
    again.close()
    assert kept.tolist() == [9, 2, 2, 2]  # as long as a tensor uses it


def in_memory_and_temporary_folders():
    return {path for folder in ("/dev/shm", tempfile.gettempdir()) for path in Path(folder).glob("*cbd_fast*")}


def test_nothing_has_a_place_in_a_file_system(name):
    before = in_memory_and_temporary_folders()
    first = start(name, "time.sleep(600)")
    assert first.stdout.readline() == "filling\n"
    assert in_memory_and_temporary_folders() == before
    first.kill()
    first.wait()
    second = start(name)
    assert [second.stdout.readline() for _ in range(2)] == ["filling\n", "sum 7000\n"]
    second.kill()
    second.wait()
    assert in_memory_and_temporary_folders() == before


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.touch])
def test_what_lies_in_the_temporary_folder_is_none_of_its_business(name, make, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    make(tmp_path / f"cbd_fast-{os.getuid()}-{name}")
    block = SharedMemory(name, 1000, lambda data, _: data.fill_(2), print)
    assert int(block.data.sum()) == 2000
    block.close()


def num_open_files():
    return len(os.listdir("/proc/self/fd"))


def check_own_memory(name, reason):
    """As good as shared memory, but for the warning."""
    num_before, began = num_open_files(), time.monotonic()
    with pytest.warns(UserWarning, match=f"cannot be shared with other processes here .{reason}"):
        block = SharedMemory(name, 1000, lambda data, report: (report(1, 2), data.fill_(2)), lambda *_: None)
    assert time.monotonic() - began < 1
    assert (block.is_mine, int(block.data.sum())) == (True, 2000)
    block.close()
    assert num_open_files() == num_before


@pytest.mark.parametrize("is_silent", [False, True])
def test_somebody_else_who_takes_the_name_stops_nobody(name, monkeypatch, is_silent):
    monkeypatch.setattr(os, "geteuid", lambda: 12345)  # who has the name, says the kernel, is another
    monkeypatch.setattr(turns, "MAX_SECONDS_UNKNOWN", 0.3 if is_silent else 60)
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(f"\0cbd_fast-12345-{name}")
        if not is_silent:
            taken.listen()
        check_own_memory(name, "another user has its name")


def test_where_there_are_no_anonymous_files(name, monkeypatch):
    def memfd_create(name):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "memfd_create", memfd_create)
    check_own_memory(name, ".Errno 38. Function not implemented")


def test_where_nothing_can_be_mapped_shared(name, monkeypatch):
    def mmap_private(descriptor, length, flags=mmap.MAP_SHARED):
        if flags & mmap.MAP_SHARED:
            raise OSError(errno.ENODEV, "No such device")
        return real_mmap(descriptor, length, flags=flags)

    real_mmap = mmap.mmap
    monkeypatch.setattr(mmap, "mmap", mmap_private)
    check_own_memory(name, ".Errno 19. No such device")


def test_a_block_that_is_not_whole_or_not_of_this_user_is_not_taken(name, monkeypatch):
    half = os.memfd_create(f"cbd_fast-{name}")
    os.ftruncate(half, 1000 + 24)
    block = SharedMemory(name, 1000, lambda data, _: data.fill_(2), print)
    assert block.is_mine
    os.close(half)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    other = SharedMemory(name, 1000, lambda data, _: data.fill_(3), print)
    assert other.is_mine
    block.close()
    other.close()


def test_an_interrupted_fill_leaves_no_open_files(name):
    def interrupt(data, on_progress):
        raise KeyboardInterrupt

    num_before = num_open_files()
    with pytest.raises(KeyboardInterrupt):
        SharedMemory(name, 1000, interrupt, print)
    assert num_open_files() == num_before
