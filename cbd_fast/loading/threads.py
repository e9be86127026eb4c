"""Threads that read and decode pictures, and how many of them this process should have."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import torch


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
