import os
import signal

import pytest

pytest.register_assert_rewrite("tests.helpers")  # its assertions tell as much as those of tests

# All this before PyTorch looks what processor there is.
ALL_CORES = os.sched_getaffinity(0)
# Each of several workers has a core of its own: threads of all of them on the same cores would wait for each other
# several times as long as they compute.
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    os.sched_setaffinity(0, {sorted(ALL_CORES)[int(worker.removeprefix("gw")) % len(ALL_CORES)]})
# On processors that have instructions for fp16, oneDNN 3 trains with them seven times as slowly as without.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")

# In the background of a script, or under nohup, signals are ignored, and would be by all processes that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
