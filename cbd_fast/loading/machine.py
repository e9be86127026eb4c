"""This process's place among the others, its share of the machine's cores, and its threads for pictures."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import torch

from cbd_fast.errors import InputError


def place_among_processes(rank: int | None = None, world_size: int | None = None) -> tuple[int, int]:
    """Rank and number of processes: as given, as torch.distributed says, or as its launcher's environment says.

    Raises:
        InputError: the two do not go together.
    """
    is_joined = torch.distributed.is_available() and torch.distributed.is_initialized()
    if world_size is None:
        world_size = torch.distributed.get_world_size() if is_joined else int(os.environ.get("WORLD_SIZE", "1"))
    if rank is None:
        rank = torch.distributed.get_rank() if is_joined else int(os.environ.get("RANK", "-1"))
        rank = 0 if world_size == 1 else rank
    if rank == -1:
        raise InputError(f"world_size={world_size}: which of them this process is, is not known; give rank too")
    if not 0 <= rank < world_size:
        raise InputError(f"rank={rank}: must be 0 or more and below world_size={world_size}")
    return rank, world_size


def num_cores() -> int:
    """Cores for this process: those it may use, shared with the other processes of a launcher on this machine."""
    num_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, len(os.sched_getaffinity(0)) // num_processes)


def thread_pool(num_threads: int) -> ThreadPoolExecutor:
    """Threads in each of which PyTorch computes on one core: the parallelism is over pictures."""
    num_inside = torch.get_num_threads()
    ready = threading.Barrier(num_threads + 1)

    def use_one_core() -> None:
        torch.get_num_threads()  # PyTorch gives a thread its default on first use; only then can it be changed
        torch.set_num_threads(1)
        ready.wait()

    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="cbd-picture")
    for _ in range(num_threads):
        pool.submit(use_one_core)
    ready.wait()
    torch.set_num_threads(num_inside)  # the setting is also the default of threads to come
    return pool
