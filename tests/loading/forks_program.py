"""Ways to fork while Loaders are open; ``test_forks.py`` runs it in a process with a time limit.

    python tests/loading/forks_program.py SHARDS DECODER DAMAGED_SHARDS [METHOD ...]

Prints what does not come out as it should, and "done" in the end. A child that does not end in time "hangs".
"""

import gc
import multiprocessing
import os
import pty
import signal
import subprocess
import sys
import threading
import time

import torch

from cbd_fast import Loader
from cbd_fast.errors import RunError

SHARDS, DECODER, DAMAGED, METHODS = *sys.argv[1:4], sys.argv[4:]
OPTIONS = {"shards": SHARDS, "decoder": DECODER, "sampling": "class_balanced", "max_bad_fraction": 0.5}
OPTIONS |= {"batch_size": 6, "image_size": 32, "device": "cpu", "num_threads": 2}
MAX_SECONDS = 20  # for each child


def ending(process_id):
    """How a child ends."""
    deadline = time.monotonic() + MAX_SECONDS
    while time.monotonic() < deadline:
        ended, status = os.waitpid(process_id, os.WNOHANG)
        if ended:
            return str(os.waitstatus_to_exitcode(status))
        time.sleep(0.002)
    os.kill(process_id, signal.SIGKILL)
    os.waitpid(process_id, 0)
    return "hangs"


def child(act, leave=os._exit, fork=os.fork):
    """Forks, acts in the child, which then leaves; how it ends."""
    forked = fork()
    process_id = forked if isinstance(forked, int) else forked[0]
    if not process_id:
        act()
        leave(0)
        return ""  # a child that does not leave
    return ending(process_id)


def leave_by_exception(code):
    raise ValueError(code)


def refuses(act):
    try:
        act()
    except RunError as error:
        reason = str(error)
    assert "open the Loader in this process" in reason


def look():
    for loader in loaders:
        assert len(loader) == 3
        assert loader.plan(0).indices.tolist() == plan
        assert loader.state_dict()["num_yielded"] == bool(iterators)
        assert loader.stats().num_batches >= 0
        assert loader.bad_images == {}


def use():
    for loader in loaders:
        refuses(lambda: loader.batch(0))  # noqa: B023
        refuses(lambda: next(iter(loader)))  # noqa: B023
    for iterator in iterators:
        refuses(lambda: next(iterator))  # noqa: B023
    with loaders[0]:
        pass
    for loader in loaders:
        loader.close()


def end_iterators():
    for iterator in iterators:
        iterator.close()


def drop_all():
    loaders.clear()
    iterators.clear()
    gc.collect()


def own_loaders():
    """Loaders of the child's own, with the parent's cache."""
    for cache in (None, 0.5):
        with Loader(**OPTIONS, cache=cache) as loader:
            assert torch.equal(loader.batch(0).images, expected)
            assert cache is None or not loader.cache._shared.is_mine


def everything():
    for act in (look, use, end_iterators, own_loaders, drop_all, own_loaders):
        act()


def in_a_thread(act):
    """What an act in a thread returns."""
    returned = []
    thread = threading.Thread(target=lambda: returned.append(act()))
    thread.start()
    thread.join()
    return returned[0]


def check(what, *came_out, wanted="0"):
    if any(each != wanted for each in came_out):
        print(f"{what}: {came_out}, not {wanted}", flush=True)


def try_all(when):
    """All that a child may do with its parent's Loaders and its own, however it is forked and leaves."""
    for act in (lambda: None, look, use, end_iterators, drop_all, own_loaders):
        check((when, act), child(act))
    check((when, "everything"), child(everything, sys.exit))
    check((when, "grandchild"), child(lambda: check("grandchild", child(everything))))
    check((when, "thread"), in_a_thread(lambda: child(everything)))


def try_libraries():
    """What forks or spawns by itself, and the rarer ways to fork and to leave."""
    check("exception", child(lambda: None, leave_by_exception), wanted="1")
    check("pty", child(everything, sys.exit, pty.fork))
    check("preexec_fn", subprocess.run(["true"], preexec_fn=lambda: None, timeout=MAX_SECONDS).returncode, wanted=0)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        check("Pool", pool.map_async(abs, [-1, -2]).get(MAX_SECONDS), wanted=[1, 2])
    for method in METHODS:
        options = {"num_workers": 1, "multiprocessing_context": method, "timeout": MAX_SECONDS}
        batches = [int(batch) for batch in torch.utils.data.DataLoader([1, 2], **options)]
        check(("DataLoader", method), batches, wanted=[1, 2])


def try_callbacks():
    """Forks inside what a Loader calls, also of children that come out of it as if they were the parent."""
    for leave in (os._exit, sys.exit, leave_by_exception, lambda code: None):
        endings = []

        def fork(*arguments):
            endings.append(child(lambda: None, leave))  # noqa: B023
            return arguments[0]

        with Loader(**OPTIONS | {"shards": DAMAGED}, on_bad_image=fork, transform=fork) as loader:
            check(("callbacks", leave), len(list(loader.steps(0, 4))), wanted=4)
        check(("callbacks", leave), *endings, wanted="0" if leave in (os._exit, sys.exit) else "1")
        check(("callbacks", leave), len(endings), wanted=6)  # two bad images and four batches


def try_while_filling():
    """Forks while the cache is being filled, by what is called meanwhile."""
    for leave in (os._exit, sys.exit, leave_by_exception):
        endings = []

        def fork(num_done, _):
            if not num_done or leave == os._exit:  # noqa: B023
                endings.append(child(lambda: None, leave))  # noqa: B023

        with Loader(**OPTIONS, cache=0.4, on_cache_fill=fork) as loader:
            check(("filling", leave), *endings, wanted=str(int(leave is leave_by_exception)))
            check(("filling", leave), loader.cache._shared.is_mine, wanted=True)
            with Loader(**OPTIONS, seed=2, cache=0.4) as other:
                check(("filled", leave), other.cache._shared.is_mine, wanted=False)


if __name__ == "__main__":
    loaders, iterators = [Loader(**OPTIONS, cache=cache) for cache in (None, 0.5)], []
    expected, plan = loaders[0].batch(0).images, loaders[0].plan(0).indices.tolist()
    try_all("before")
    iterators += [iter(loader) for loader in loaders]
    assert all(torch.equal(next(iterator).images, expected) for iterator in iterators)
    try_all("while")
    try_libraries()
    try_callbacks()
    try_while_filling()
    while iterators:
        assert [batch.step for batch in iterators.pop()] == [1, 2]
    assert all(torch.equal(loader.batch(0).images, expected) for loader in loaders)
    drop_all()
    print("done", flush=True)
