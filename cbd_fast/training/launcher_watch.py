"""A training does not outlive its launcher, so that the same command can be given again at once."""

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import PurePath

import psutil

from cbd_fast.processes import PARENT, is_launched
from cbd_fast.training.stopping import Stops

LOOK_EVERY_SECONDS = 0.5
GRACE_SECONDS = 60.0  # for the step that is under way and a checkpoint
_PROGRAMS = {"torchrun", "accelerate", "accelerate-launch"}
_MODULES = {
    "torch.distributed.run", "torch.distributed.launch", "accelerate.commands.launch",
    "accelerate.commands.accelerate_cli",
}  # fmt: skip
_SCRIPTS = tuple(module.replace(".", "/") + ".py" for module in sorted(_MODULES))


@contextmanager
def ends_with_launcher(stops: Stops) -> Iterator[None]:
    """Asks the training to stop when its launcher has ended, as long as the block runs.

    Without a launcher nothing happens: under ``nohup`` a training goes on when its shell has ended.
    """
    launcher = find_launcher()
    if launcher is None and not _has_lost_launcher():
        yield
        return
    is_over = threading.Event()
    watch = threading.Thread(target=_watch, args=(launcher, stops, is_over), name="cbd-launcher", daemon=True)
    watch.start()
    try:
        yield
    finally:
        is_over.set()
        watch.join()


def find_launcher() -> psutil.Process | None:
    """The launcher among the processes that this one descends from; the parent where another program has launched."""
    with suppress(psutil.Error):
        parents = psutil.Process().parents()
        for process in parents:
            with suppress(psutil.Error):
                if is_launcher(process.cmdline()):
                    return process
        if "TORCHELASTIC_RUN_ID" in os.environ and not _has_lost_launcher() and parents:
            return parents[0]  # a script or notebook that uses PyTorch's launcher from Python
    return None


def is_launcher(command: Sequence[str]) -> bool:
    """Whether a command line is that of ``torchrun`` or ``accelerate launch``."""
    for number, word in enumerate(command):
        is_module = number > 0 and command[number - 1] == "-m"
        # options of the interpreter may stand before
        if PurePath(word).name in _PROGRAMS or (is_module and word in _MODULES) or word.endswith(_SCRIPTS):
            return "accelerate" not in word or "launch" in word or "launch" in command[number:]
        if is_module or (word.endswith(".py") and number > 0):
            return False  # what follows are arguments of another program
    return False


def _has_lost_launcher() -> bool:
    """Whether the launcher ended while this process was still importing."""
    return is_launched() and os.getppid() != PARENT


def _is_there(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _watch(launcher: psutil.Process | None, stops: Stops, is_over: threading.Event) -> None:
    while launcher is not None and _is_there(launcher):
        if is_over.wait(LOOK_EVERY_SECONDS):
            return
    stops.interrupt(signal.SIGTERM)
    if not is_over.wait(GRACE_SECONDS):
        print("stopped: the launcher has ended; the same command goes on from the last checkpoint", file=sys.stderr)
        os._exit(128 + signal.SIGTERM)
