"""What is measured; who asks for it is tested in test_dry_run.py."""

import re
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from cbd_fast import system
from cbd_fast.errors import InputError
from cbd_fast.preflight import probe
from tests.helpers import digits_config

SPEC, TWO_PROCESSES = SimpleNamespace(name="teacher-1"), SimpleNamespace(num_processes=2)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory"),
            r"teacher-1: 4 images of 32 x 32 at a time, with small_convnet, do not fit into the memory of the GPU; "
            r"raise optimization\.accumulation \(now 2\), or .* or set mixed_precision=bf16",
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "do not fit into the memory of this machine"),
    ],
)
def test_too_little_memory_is_told_in_plain_words(error, message):
    config = digits_config("run", "shards", optimization={"accumulation": 2})
    with pytest.raises(InputError, match=message), probe.explained_out_of_memory(SPEC, config, TWO_PROCESSES):
        raise error


def test_other_errors_stay_as_they_are():
    config = digits_config("run", "shards")
    with pytest.raises(RuntimeError, match="size"), probe.explained_out_of_memory(SPEC, config, TWO_PROCESSES):
        torch.ones(2) @ torch.ones(3)


def test_peak_memory_is_that_since_the_start():
    # in a process of its own: what other tests leave behind may go at any moment, and hide what grows
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        growth, is_set_back, can_be_set_back = process.submit(peaks_of_a_block).result()
    assert 190e6 < growth < 400e6
    assert is_set_back == can_be_set_back  # where it cannot be, it is told too large, never too small


def peaks_of_a_block():
    cpu = torch.device("cpu")
    can_be_set_back = system_sets_peaks_back()
    system.reset_peak_memory(cpu)
    up_to_the_peak = torch.ones((system.peak_memory_bytes(cpu) - psutil.Process().memory_info().rss) // 4 + 5_000_000)
    before = system.peak_memory_bytes(cpu)
    block = torch.ones(50_000_000)
    del block
    growth = system.peak_memory_bytes(cpu) - before
    system.reset_peak_memory(cpu)
    is_set_back = system.peak_memory_bytes(cpu) < before + 100e6
    del up_to_the_peak
    return growth, is_set_back, can_be_set_back


def system_sets_peaks_back():
    """Not all let a process do so; found out without the code under test."""
    process = psutil.Process()
    torch.ones(50_000_000)  # 200 MB more than there are now: a peak, whatever was before
    before = process.memory_info().rss
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    peak = int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
    return peak < before + 100e6
