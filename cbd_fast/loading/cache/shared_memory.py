"""Memory that the processes of one machine share and that is gone when the last of them is, however it ended.

The first process to come makes the block and fills it; the others wait, then map the same memory. The block is an
anonymous file (memfd), which the kernel frees with its last user, also after a kill. A note, a small temporary file
that is locked while the block is being filled, says which processes have it open under which number; it goes with the
last of them, unless that one is killed.
"""

import fcntl
import json
import mmap
import os
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import torch

LOOK_EVERY_SECONDS = 0.2

ProgressCallback = Callable[[int, int], None]  # how much is done, of how much


class SharedMemory:
    """Bytes that are filled once per machine and then only read.

    Attributes:
        data: ``(num_bytes,)`` uint8; a tensor that shares it keeps it in memory.
        is_mine: whether this process filled the memory.
    """

    def __init__(
        self,
        name: str,
        num_bytes: int,
        fill: Callable[[torch.Tensor, ProgressCallback], None],
        on_progress: ProgressCallback,
    ) -> None:
        """Finds the block of that name and size, or makes and fills it.

        Args:
            name: hexadecimal digits that stand for the content: equal names mean equal bytes.
            num_bytes: size of the block, at least 1.
            fill: called in one process with the empty ``data`` and a callback for its progress; if it fails, the next
                process tries.
            on_progress: called in every process, whether it fills or waits.
        """
        path = Path(tempfile.gettempdir()) / f"cbd_fast-{os.getuid()}-{name}"
        with _locked(path, on_progress) as note:
            users = _read(note).get("users", [])
            shared_descriptor = _open_block(users, name, num_bytes)
            self.is_mine = shared_descriptor is None
            descriptor = os.memfd_create(_memfd_name(name)) if shared_descriptor is None else shared_descriptor
            me = [os.getpid(), descriptor]
            # also when this process ends without closing
            self._release = weakref.finalize(self, _release, me, path)
            if self.is_mine:
                users = []
                os.ftruncate(descriptor, num_bytes)
            self.data = torch.frombuffer(mmap.mmap(descriptor, num_bytes), dtype=torch.uint8)

            def write_progress(done: int, total: int) -> None:
                _write(note, {"done": done, "total": total})
                on_progress(done, total)

            try:
                if self.is_mine:
                    fill(self.data, write_progress)
                _write(note, {"users": [*users, me]})
            except BaseException:
                path.unlink(missing_ok=True)
                self.close()
                raise

    def close(self) -> None:
        """Lets the memory go, as soon as no tensor shares it."""
        self.data = torch.empty(0, dtype=torch.uint8)
        self._release()


def _release(me: list[int], path: Path) -> None:
    """Takes a process out of the note, which goes with the last of them, and closes its block."""
    with suppress(OSError), open(path, "r+") as note:  # or it is gone, or in use: who reads it passes over the dead
        fcntl.flock(note, fcntl.LOCK_EX | fcntl.LOCK_NB)
        others = [user for user in _read(note).get("users", []) if user != me and Path(_descriptor_path(user)).exists()]
        if others:
            _write(note, {"users": others})
        else:
            path.unlink()
    os.close(me[1])


@contextmanager
def _locked(path: Path, on_progress: ProgressCallback) -> Iterator[TextIO]:
    """Opens and locks a note; while another process fills the block, passes on its progress."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        with open(os.open(path, flags, 0o600), "r+") as note:
            _wait_for(note, on_progress)
            with suppress(FileNotFoundError):  # the last user may have taken it away meanwhile
                if os.fstat(note.fileno()).st_ino == path.stat().st_ino:
                    yield note
                    return


def _wait_for(note: TextIO, on_progress: ProgressCallback) -> None:
    """Locks the note; while another process fills the block, passes on its progress."""
    while True:
        try:
            fcntl.flock(note, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            progress = _read(note)
            if "done" in progress:
                on_progress(progress["done"], progress["total"])
            time.sleep(LOOK_EVERY_SECONDS)


def _read(note: TextIO) -> dict[str, Any]:
    """Content of the note; empty if it is new, or just being written."""
    note.seek(0)
    with suppress(ValueError):
        return json.loads(note.read())
    return {}


def _write(note: TextIO, content: dict[str, Any]) -> None:
    note.seek(0)
    note.truncate()
    json.dump(content, note)
    note.flush()


def _open_block(users: list[list[int]], name: str, num_bytes: int) -> int | None:
    """The block that one of the users still has, opened; None if it is there no more, or is another by now."""
    for user in users:
        with suppress(OSError):
            if _memfd_name(name) not in os.readlink(_descriptor_path(user)):
                continue
            descriptor = os.open(_descriptor_path(user), os.O_RDWR | os.O_CLOEXEC)
            if os.fstat(descriptor).st_size == num_bytes:
                return descriptor
            os.close(descriptor)
    return None


def _descriptor_path(user: list[int]) -> str:
    process, descriptor = user
    return f"/proc/{process}/fd/{descriptor}"


def _memfd_name(name: str) -> str:
    return f"cbd_fast-{name}"
