"""Device, threads for images, and memory in use."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import torch

from cbd_fast.errors import InputError, first_line


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """A device with its number: the one that is named, or the current GPU where there is one, or the CPU.

    Raises:
        InputError: no such device here, or of a kind that nothing here was made for.
    """
    name = str(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        chosen = torch.device(name)
        if chosen.type not in ("cpu", "cuda"):
            raise InputError(f"device={name!r}: must be cpu, cuda, or one GPU of several, such as cuda:1")
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:  # the latter where PyTorch was built without GPUs
        raise InputError(f"device={name!r}: cannot be used ({first_line(error)}); use device=cpu") from error
    return torch.device("cuda", torch.cuda.current_device()) if str(chosen) == "cuda" else chosen


def thread_pool(num_threads: int) -> ThreadPoolExecutor:
    """Threads in each of which PyTorch computes on one core: the parallelism is over images."""
    num_inside = torch.get_num_threads()
    ready = threading.Barrier(num_threads + 1)

    def use_one_core() -> None:
        torch.get_num_threads()  # PyTorch gives a thread its default on first use; only then can it be changed
        torch.set_num_threads(1)
        ready.wait()

    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="cbd-image")
    for _ in range(num_threads):
        pool.submit(use_one_core)
    ready.wait()
    torch.set_num_threads(num_inside)  # the setting is also the default of threads to come
    return pool


def reset_peak_memory(device: torch.device) -> None:
    """Forgets the most memory that there was so far."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):  # where the system does not allow it, the peak is that of the whole process: too much
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory of the GPU, or without one of the machine, that this process has had since the last reset."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024


def used_memory_bytes(device: torch.device) -> int:
    """The most memory of the GPU that was in use, or without one the memory of the machine that is in use now."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss
