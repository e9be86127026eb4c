"""The other processes of a run: why one of them has ended, told by those that it leaves behind."""

import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import count
from typing import NamedTuple, NoReturn

import psutil
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import distributed

from cbd_fast.errors import (
    AFTER_MENDING,
    InputError,
    RunError,
    Stopped,
    describe_os_error,
    first_line,
    is_of_environment,
)
from cbd_fast.processes import has_agent

TIMEOUT = timedelta(minutes=10)  # of what processes exchange; an evaluation that one of them is late for is shorter
LOOK_SECONDS = 5.0  # how long another process's reason is looked for after a connection was lost
_RUNS = count()  # that these processes have begun, which may stay joined for the next
_ABOUT_CONNECTIONS = re.compile(r"gloo|nccl|connection|broken pipe|socket|timed? ?out", re.IGNORECASE)
_KINDS: dict[str, type[Exception]] = {"InputError": InputError, "RunError": RunError}


class Place(NamedTuple):
    """Where a process of the run is.

    Attributes:
        host: name of its machine.
        pid: its number there.
        started: when it was started, in seconds; another process may get its number later.
    """

    host: str
    pid: int
    started: float

    def is_gone(self) -> bool:
        """Whether it has ended; False where that cannot be seen, as on another machine."""
        if self.host != socket.gethostname():
            return False
        try:
            process = psutil.Process(self.pid)
            return process.status() == psutil.STATUS_ZOMBIE or process.create_time() != self.started
        except psutil.NoSuchProcess:
            return True


class Peers:
    """All processes of a run, which tell each other why they end."""

    def __init__(self, accelerator: Accelerator) -> None:
        """All processes, which are joined already, call it together."""
        self._accelerator, self._rank = accelerator, accelerator.process_index
        self._places: list[Place] = []
        if accelerator.num_processes > 1:
            me = Place(socket.gethostname(), os.getpid(), psutil.Process().create_time())
            self._places = [Place(*place) for place in gather_object([me])]
            self._key = f"cbd_fast/ended/{next(_RUNS)}"

    @contextmanager
    def explained(self) -> Iterator[None]:
        """An error of this process is told to the others, and one that follows from another's end names that.

        Raises:
            InputError: another process has ended with one.
            RunError: another process has ended, or does not answer.
            Stopped: another process was stopped by a signal.
        """
        try:
            yield
        except BaseException as error:
            if not self._places:
                raise
            if isinstance(error, RuntimeError) and _is_of_connection(error):
                self._raise_reason(error)
            self._tell(error)
            raise

    def main_first(self, action: Callable[[], None]) -> None:
        """Does something on the main process; all go on when it is done.

        Raises:
            InputError: it could not be done; on all processes.
        """
        message = None
        if self._accelerator.is_main_process:
            try:
                action()
            except InputError as error:
                message = str(error)
        if self._places:
            (message,) = broadcast_object_list([message])
        if message is not None:
            raise InputError(message)

    def _tell(self, error: BaseException) -> None:
        message = str(error) or type(error).__name__
        if isinstance(error, OSError) and is_of_environment(error):
            message = f"{describe_os_error(error)}; {AFTER_MENDING}"
        kind = next((name for name, kind in _KINDS.items() if isinstance(error, kind)), "")
        signum = signal.SIGINT if isinstance(error, KeyboardInterrupt) else 0
        reason = {"kind": kind, "message": message, "signum": getattr(error, "signum", signum)}
        with suppress(RuntimeError):
            _store().set(f"{self._key}/{self._rank}", json.dumps(reason))

    def _raise_reason(self, error: RuntimeError) -> NoReturn:
        """Raises why the connection to another process was lost."""
        deadline = time.monotonic() + LOOK_SECONDS
        others = [(rank, place) for rank, place in enumerate(self._places) if rank != self._rank]
        while time.monotonic() < deadline:
            for rank, _ in others:
                self._raise_told(rank, error)
            for rank, place in others:
                if place.is_gone():
                    self._raise_told(rank, error)  # it may have told it just before
                    raise RunError(
                        f"process {rank} is gone (number {place.pid} of {place.host}, which has said nothing; it may "
                        "have been killed, or memory ran out); the same command goes on from the last checkpoint"
                    ) from error
            time.sleep(0.1)
        raise RunError(
            f"another process is gone or has not answered for {TIMEOUT.seconds // 60} minutes "
            f"({first_line(error)}); the same command goes on from the last checkpoint"
        ) from error

    def _raise_told(self, rank: int, error: RuntimeError) -> None:
        """Raises what a process has said when it ended, if it has."""
        key, said = f"{self._key}/{rank}", None
        if not has_agent() and self._places[0].is_gone():
            return  # and the store with it
        with suppress(RuntimeError):
            if _store().check([key]):
                said = json.loads(_store().get(key))
        if said is None:
            return
        if said["signum"]:
            raise Stopped(said["signum"]) from error
        message = re.sub(r"^process \d+: ", "", said["message"])
        raise _KINDS.get(said["kind"], RunError)(f"process {rank}: {message}") from error


def _is_of_connection(error: RuntimeError) -> bool:
    """Whether an error of PyTorch's is about other processes; most have no type of their own."""
    if isinstance(error, RunError):
        return False
    return isinstance(error, distributed.DistError) or _ABOUT_CONNECTIONS.search(str(error)) is not None


def _store() -> distributed.Store:
    return distributed.distributed_c10d._get_default_store()
