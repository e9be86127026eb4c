"""Memory that the processes of one machine share and that is gone when the last of them is, however it ended.

The first process to come makes the block, an anonymous file (memfd), and fills it; the others find it among the open
files of this user's processes and map the same memory. Nothing has a place in a file system: nobody can put anything
else there, and nothing is left after a kill. Where that cannot be, a process has memory of its own.
"""

import mmap
import os
import struct
import warnings
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress

import torch

from cbd_fast.errors import first_line
from cbd_fast.loading.cache.turns import turn
from cbd_fast.loading.forks import OwnProcess

_STATE = struct.Struct("3q")  # behind the bytes: how much is done, of how much, and whether all of it is there

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
        process = OwnProcess("Loader")

        def pass_on_progress(process_id: int) -> None:
            for done, total, _ in _states(name, num_bytes, [process_id]).values():
                if total:
                    on_progress(done, total)

        with turn(name, pass_on_progress) as is_my_turn:
            if not is_my_turn:
                _warn("another user has its name, or there is no such name here")
            descriptor, memory, self.is_mine = _open(name, num_bytes) if is_my_turn else (None, _own(num_bytes), True)
            self.data = torch.frombuffer(memory, dtype=torch.uint8, count=num_bytes)
            self._release = weakref.finalize(self, _close, descriptor, process)
            if not self.is_mine:
                return

            def note_progress(done: int, total: int) -> None:
                _STATE.pack_into(memory, num_bytes, done, total, 0)
                on_progress(done, total)
                process.require()  # what is called may have forked

            try:
                fill(self.data, note_progress)
                _STATE.pack_into(memory, num_bytes, 0, 0, 1)
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Lets the memory go, as soon as no tensor shares it."""
        self.data = torch.empty(0, dtype=torch.uint8)
        self._release()


def _close(descriptor: int | None, process: OwnProcess) -> None:
    if descriptor is not None and process:  # a child may have closed it, and opened something else in its place
        os.close(descriptor)


def _open(name: str, num_bytes: int) -> tuple[int | None, mmap.mmap, bool]:
    """The block that another process filled, or a new one: descriptor, memory, and whether it is to be filled."""
    descriptor = None
    try:
        whole = [path for path, (_, _, is_whole) in _states(name, num_bytes, _process_ids()).items() if is_whole]
        with suppress(FileNotFoundError, IndexError):  # the last process that had it may have ended meanwhile
            descriptor = os.open(whole[0], os.O_RDWR | os.O_CLOEXEC)
        is_new = descriptor is None
        if descriptor is None:
            descriptor = os.memfd_create(_memfd_name(name))
            os.ftruncate(descriptor, num_bytes + _STATE.size)
        return descriptor, mmap.mmap(descriptor, num_bytes + _STATE.size), is_new
    except (OSError, AttributeError) as error:  # no such files, or no shared maps of them
        if descriptor is not None:
            os.close(descriptor)
        _warn(first_line(error))
        return None, _own(num_bytes), True


def _own(num_bytes: int) -> mmap.mmap:
    """Memory of this process alone."""
    return mmap.mmap(-1, num_bytes + _STATE.size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _warn(reason: str) -> None:
    warnings.warn(
        f"the cache cannot be shared with other processes here ({reason}); this process keeps one of its own",
        stacklevel=2,
    )


def _process_ids() -> list[int]:
    """This user's processes."""
    user, found = os.geteuid(), []
    for entry in os.scandir("/proc"):
        with suppress(OSError):  # it may have ended meanwhile
            if entry.name.isdecimal() and entry.stat().st_uid == user:
                found.append(int(entry.name))
    return found


def _states(name: str, num_bytes: int, process_ids: Iterable[int]) -> dict[str, tuple[int, int, int]]:
    """How far the blocks of that name and size are that processes have open, by path."""
    link = f"/memfd:{_memfd_name(name)} (deleted)"
    found = {}
    for process_id in process_ids:
        with suppress(OSError):  # not ours to look at, or gone
            for entry in os.scandir(f"/proc/{process_id}/fd"):
                with suppress(OSError):
                    if os.readlink(entry.path) == link and (state := _state(entry.path, num_bytes)):
                        found[entry.path] = state
    return found


def _state(path: str, num_bytes: int) -> tuple[int, int, int] | None:
    """How much is done, of how much, and whether all is there; None of a block of another size or user."""
    with open(path, "rb", buffering=0) as file:
        status = os.fstat(file.fileno())
        if status.st_size != num_bytes + _STATE.size or status.st_uid != os.geteuid():
            return None
        done, total, is_whole = _STATE.unpack(os.pread(file.fileno(), _STATE.size, num_bytes))
    return done, total, is_whole


def _memfd_name(name: str) -> str:
    return f"cbd_fast-{name}"
