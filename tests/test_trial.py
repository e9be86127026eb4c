"""What is measured; who asks for it is tested in test_dry_run.py."""

import re
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cbd_fast.errors import InputError
from cbd_fast.training import trial

from .test_engine import config_of

JOB, TWO_PROCESSES = SimpleNamespace(name="teacher-1"), SimpleNamespace(num_processes=2)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory"),
            r"teacher-1: 4 pictures of 32 x 32 at a time, with small_convnet, do not fit into the memory of the GPU; "
            r"raise optimization\.accumulation \(now 2\), or .* or set mixed_precision=bf16",
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "do not fit into the memory of this machine"),
    ],
)
def test_too_little_memory_is_told_in_plain_words(error, message):
    config = config_of("run", "shards", optimization={"accumulation": 2})
    with pytest.raises(InputError, match=message), trial.plain_out_of_memory(JOB, config, TWO_PROCESSES):
        raise error


def test_other_errors_stay_as_they_are():
    config = config_of("run", "shards")
    with pytest.raises(RuntimeError, match="size"), trial.plain_out_of_memory(JOB, config, TWO_PROCESSES):
        torch.ones(2) @ torch.ones(3)


def system_forgets_peaks():
    torch.ones(50_000_000)  # 200 MB more than there are now: a peak, whatever was before
    before = high_water_mark()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return high_water_mark() < before - 100e6


def high_water_mark():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) * 1024


def test_peak_memory_is_that_since_the_start():
    if not system_forgets_peaks():
        pytest.skip("a process's peak cannot be set back here")
    cpu = torch.device("cpu")
    trial.start_peak(cpu)
    before = trial.peak_bytes(cpu)
    block = torch.ones(50_000_000)
    del block
    assert 190e6 < trial.peak_bytes(cpu) - before < 400e6
    trial.start_peak(cpu)
    assert trial.peak_bytes(cpu) < before + 100e6
