import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

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
