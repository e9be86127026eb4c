"""One writer at a time: a folder for one command alone, given back by the system when the command ends, or dies."""

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from cbd_fast.errors import InputError, describe_os_error

LOCK_SECONDS = 10.0  # how long a command waits for a folder that another has
LOOK_EVERY_SECONDS = 0.05
LOCK_SUFFIX = ".cbd_fast-lock"  # a file beside a folder, only on file systems that have no locks
_of_this_process: set[int] = set()  # descriptors that forked children close


@contextmanager
def locked_folder(path: Path, wait_seconds: float | None = None, *, with_children: bool = True) -> Iterator[Path]:
    """Makes a folder if it is not there, and has it for this process alone while the block runs.

    Processes that the block starts with ``close_fds=False`` have it too: if this one is killed, nobody else gets the
    folder before the last of them has ended. On a file system without locks a file beside the folder does the same, as
    long as all processes are on one machine: that of a process which is there no more counts as gone.

    Args:
        path: the folder.
        wait_seconds: how long to wait for somebody else to end, as the processes of a killed command take a moment to;
            by default ``LOCK_SECONDS``.
        with_children: whether processes that the block starts have the folder too; otherwise it is given back when
            this one ends, whoever lives on.

    Raises:
        InputError: somebody else has the folder; the message says which process.
    """
    deadline = time.monotonic() + (LOCK_SECONDS if wait_seconds is None else wait_seconds)
    descriptor, lock_file = -1, None
    try:
        while descriptor < 0:
            try:
                path.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(path, os.O_RDONLY)
            except (OSError, ValueError) as error:
                reason = describe_os_error(error) if isinstance(error, OSError) else error
                raise InputError(f"{path}: no folder can be made there ({reason})") from error
            os.set_inheritable(descriptor, with_children)
            if not with_children:
                _of_this_process.add(descriptor)
            if not _lock(descriptor, path, deadline):
                lock_file = _make_lock_file(path, deadline)
            if not _is_at(descriptor, path):  # who had it before has finished and moved or removed it
                _release(descriptor, lock_file)
                descriptor, lock_file = -1, None
        yield path
    finally:
        if descriptor >= 0:
            _release(descriptor, lock_file)


def _release(descriptor: int, lock_file: Path | None) -> None:
    _of_this_process.discard(descriptor)
    os.close(descriptor)
    if lock_file is not None:
        with suppress(OSError):
            lock_file.unlink()


def _give_back_in_child() -> None:
    while _of_this_process:
        os.close(_of_this_process.pop())


os.register_at_fork(after_in_child=_give_back_in_child)


def _lock(descriptor: int, path: Path, deadline: float) -> bool:
    """Waits for the lock; False where the file system has none."""
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN):
                return False  # ENOLCK, ENOSYS, EBADF, ...: several network file systems, and those in user space
            if time.monotonic() > deadline:
                raise InputError(_is_taken(path, _lock_owner(os.fstat(descriptor).st_ino))) from error
        time.sleep(LOOK_EVERY_SECONDS)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _lock_owner(inode: int) -> int | None:
    """The process that has locked a file, as the kernel lists them."""
    with suppress(OSError):
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()  # number: FLOCK ADVISORY WRITE pid device:inode start end
            if "FLOCK" in fields and fields[5].endswith(f":{inode}"):
                return int(fields[4])
    return None


def _make_lock_file(path: Path, deadline: float) -> Path:
    """Waits for a file beside the folder that only one process can make."""
    lock_file = path.with_name(path.name + LOCK_SUFFIX)
    me = _as_owner(os.getpid())
    while True:
        try:
            descriptor = os.open(lock_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError as error:
            owner = _read_owner(lock_file)
            is_here = owner.get("host") == me["host"]
            if is_here and owner != _as_owner(owner.get("process")):
                lock_file.unlink(missing_ok=True)  # of a process that was killed
            elif time.monotonic() > deadline:
                where = "" if is_here else f" of the machine {owner.get('host')!r}"
                message = _is_taken(path, owner.get("process"), where)
                raise InputError(f"{message}; if it is there no more, remove {lock_file}") from error
            time.sleep(LOOK_EVERY_SECONDS)
            continue
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump(me, file)
        time.sleep(LOOK_EVERY_SECONDS)  # another may just be removing it, which it took for that of a dead process
        if _read_owner(lock_file) == me:
            return lock_file


def _as_owner(process: Any) -> dict[str, Any]:
    """A process of this machine, not to be taken for another that gets the same number later; empty if it is gone."""
    try:
        return {"host": socket.gethostname(), "process": process, "start": psutil.Process(process).create_time()}
    except (psutil.Error, TypeError, ValueError):
        return {}


def _read_owner(lock_file: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        owner = json.loads(lock_file.read_text(encoding="utf-8"))
        return owner if isinstance(owner, dict) else {}
    return {}


def _is_taken(path: Path, process: Any, where: str = "") -> str:
    """Whom to wait for."""
    who = "another command" if process is None else f"another command (process {process}{where})"
    return f"{path}: {who} is writing there; wait for it or end it"
