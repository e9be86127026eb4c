"""Loaders that nobody closes: threads, open files and shared memory go with them, at once."""

import gc
import itertools
import os
import subprocess
import sys
import threading
import time

import pytest

from cbd_fast import Loader
from tests.helpers import OPTIONS, REPOSITORY


def never_used(loader):
    pass


def in_mid_epoch(loader):
    for _ in loader:
        break


def with_an_iterator(loader):
    next(iter(loader))


def whole(loader):
    assert len(list(loader)) == 3


def by_exception(loader, error=ValueError):
    def stop(_):
        raise error

    with pytest.raises(error):
        list(map(stop, loader))


def by_interrupt(loader):
    by_exception(loader, KeyboardInterrupt)


USES = (never_used, in_mid_epoch, with_an_iterator, whole, by_exception, by_interrupt)


def open_files():
    return sorted(os.readlink(entry.path) for entry in os.scandir("/proc/self/fd") if os.path.lexists(entry.path))


def files_of_loaders():
    return [path for path in open_files() if "memfd:cbd_fast" in path or path.endswith((".tar", ".npy"))]


def threads_of_loaders():
    return [thread for thread in threading.enumerate() if thread.name.startswith("cbd-")]


@pytest.mark.parametrize("decoder", ["torch", "dali"])
def test_nothing_is_left_of_loaders_that_are_dropped(photo_shards, decoder):
    gc.collect()
    gc.disable()  # they must not wait for it: what they have may be large
    try:
        for seed, use in zip(range(15), itertools.cycle(USES), strict=False):
            loader = Loader(photo_shards, **OPTIONS, decoder=decoder, cache=0.5, seed=seed)
            assert threads_of_loaders()
            use(loader)
            del loader
        deadline = time.monotonic() + 10
        while (threads_of_loaders() or files_of_loaders()) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert threads_of_loaders() == []
        assert files_of_loaders() == []
    finally:
        gc.enable()


INTERRUPTED = """
import os, signal, sys
from cbd_fast import Loader

loader = Loader({shards!r}, **{options!r}, decoder="dali", cache=0.5)
for batch in loader:
    {ending}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("raise ValueError", 1),
        ("os.kill(os.getpid(), signal.SIGINT)", -2),
        ("os.kill(os.getpid(), signal.SIGKILL)", -9),
    ],
)
def test_a_process_that_never_closes_ends(photo_shards, ending, code):
    program = INTERRUPTED.format(shards=str(photo_shards), options=OPTIONS, ending=ending)
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, timeout=60)
    assert done.returncode == code, done.stderr
