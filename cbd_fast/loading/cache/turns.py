"""One process at a time: a name that only one of a machine's processes can have, and that goes with it.

The name is that of an abstract socket. It has no place in a file system, so nothing is left of it, not even after a
kill; the kernel says whose process has it, and tells those that wait when it is free.
"""

import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cbd_fast.loading.forks import watch_forks

LOOK_EVERY_SECONDS = 0.2
MAX_SECONDS_UNKNOWN = 2.0  # that somebody may have the name and not say who it is
MAX_WAITING = 4096  # processes
_CREDENTIALS = struct.Struct("3i")  # process, user, group


@contextmanager
def turn(name: str, while_waiting: Callable[[int], None]) -> Iterator[bool]:
    """Has a name as long as the block runs, when all of this user's processes that had it before are done.

    Args:
        name: up to 80 characters.
        while_waiting: called now and then with the number of the process that has the name.

    Yields:
        Whether this process has the name. It has not if somebody else took it, or there are no such names here.
    """
    address = f"\0cbd_fast-{os.geteuid()}-{name}"
    deadline = time.monotonic() + MAX_SECONDS_UNKNOWN
    mine = _take(address)
    while mine is None and time.monotonic() < deadline:
        holder = _Holder(address)
        if holder.user == os.geteuid():
            holder.wait(while_waiting)
            deadline = time.monotonic() + MAX_SECONDS_UNKNOWN
        elif holder.user is not None:
            break
        else:  # it is just beginning or ending
            time.sleep(LOOK_EVERY_SECONDS / 10)
        mine = _take(address)
    try:
        yield mine is not None
    finally:
        if mine is not None:
            mine.close()


class _Name(socket.socket):
    """A socket that a forked child closes at once, lest it has the name when its parent gives it back."""

    def enter_child(self) -> None:
        self.close()


def _take(address: str) -> _Name | None:
    """The name, if nobody has it."""
    name = _Name(socket.AF_UNIX, socket.SOCK_STREAM)
    watch_forks(name)
    try:
        name.bind(address)
        name.listen(MAX_WAITING)
    except OSError:
        name.close()
        return None
    return name


class _Holder:
    """The process that has a name.

    Attributes:
        user: number of its user; None if nobody has the name, or does not say who it is.
    """

    def __init__(self, address: str) -> None:
        """Connects, which takes no time; the other need not accept it."""
        self.user: int | None = None
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._connection.settimeout(LOOK_EVERY_SECONDS)
        try:
            self._connection.connect(address)
            credentials = self._connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            self._process_id, self.user, _ = _CREDENTIALS.unpack(credentials)
        except OSError:
            self._connection.close()

    def wait(self, while_waiting: Callable[[int], None]) -> None:
        """Returns when it has the name no more."""
        with self._connection:
            while True:
                try:
                    self._connection.recv(1)
                    return
                except TimeoutError:
                    while_waiting(self._process_id)
                except OSError:  # reset: it is gone
                    return
