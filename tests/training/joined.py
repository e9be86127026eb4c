"""Some processes that are joined over gloo, forked from the test's own, which has imported PyTorch already."""

import multiprocessing
import os
import tempfile
from collections.abc import Callable

import torch
from torch import distributed


def run_joined(function: Callable, num_processes: int = 2, seconds: float = 60) -> dict[int, object]:
    """Calls ``function(rank)`` in each of several joined processes.

    Returns:
        What it returned, or the exception that it raised, by rank; nothing of a process that was killed.
    """
    context = multiprocessing.get_context("fork")
    results, folder = context.SimpleQueue(), tempfile.TemporaryDirectory()

    def call(rank: int) -> None:
        torch.set_num_threads(1)  # threads of the parent are not there
        os.environ.update(WORLD_SIZE=str(num_processes), RANK=str(rank), LOCAL_RANK=str(rank))
        os.environ.update(LOCAL_WORLD_SIZE=str(num_processes), MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")  # not used
        where = f"file://{folder.name}/store"
        distributed.init_process_group("gloo", init_method=where, rank=rank, world_size=num_processes)
        try:
            results.put((rank, function(rank)))
        except BaseException as error:
            results.put((rank, error))
        os._exit(0)

    with folder:
        processes = [context.Process(target=call, args=(rank,), daemon=True) for rank in range(num_processes)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(seconds)
            assert process.exitcode is not None, "a process hangs"
    found: dict[int, object] = {}
    while not results.empty():
        rank, result = results.get()
        found[rank] = result
    return found
