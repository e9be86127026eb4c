"""What a run sets for the whole process, given back when it ends: a caller's script or notebook goes on as before."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState


@contextmanager
def global_state_restored() -> Iterator[None]:
    """Gives back, at the end of the block, what was set before it.

    That is: PyTorch's number of threads, cudnn.benchmark, Dynamo's suppress_errors, filters of warnings, the states of
    PyTorch's random number generators, and Accelerate's state, which inside the block is new, so that a caller's own
    ``Accelerator`` and the run's do not disturb each other. A process group that the block has joined stays: under a
    launcher the caller's processes are joined from then on.
    """
    num_threads, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
    suppress_errors = torch._dynamo.config.suppress_errors
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with warnings.catch_warnings(), torch.random.fork_rng(devices), _fresh_accelerate():
        try:
            yield
        finally:
            torch.set_num_threads(num_threads)
            torch.backends.cudnn.benchmark = benchmark
            torch._dynamo.config.suppress_errors = suppress_errors


@contextmanager
def _fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps its settings for the whole process, and refuses an ``Accelerator`` of another precision."""
    kinds = (AcceleratorState, GradientState)
    before = [dict(kind._shared_state) for kind in kinds]
    had_processes = PartialState._shared_state != {}
    for kind in kinds:
        kind._shared_state.clear()
    try:
        yield
    finally:
        for kind, state in zip(kinds, before, strict=True):
            kind._shared_state.clear()
            kind._shared_state.update(state)
        if not had_processes and not torch.distributed.is_initialized():
            PartialState._shared_state.clear()
