"""What a forked child must leave alone.

Threads are not copied into a child, but what waits for them is: pools, NVIDIA DALI's pipelines, locks that a thread had
at that moment. So what belongs to a process is used and ended by that process only, and here is how a child is told.
"""

import ctypes
import os
import sys
import traceback
import weakref
from collections.abc import Callable
from typing import Any, Protocol

from cbd_fast.errors import RunError


class HasThreads(Protocol):
    """What is to be told when it finds itself in a forked child."""

    def enter_child(self) -> None:
        """Gives up what only the parent has; called in the child, before anything else runs there."""


_WATCHED: "weakref.WeakSet[HasThreads]" = weakref.WeakSet()


def watch_forks(thing: HasThreads) -> None:
    """Has ``thing.enter_child()`` called in every forked child, as long as the thing lives."""
    _WATCHED.add(thing)


def _enter_child() -> None:
    for thing in list(_WATCHED):
        thing.enter_child()


os.register_at_fork(after_in_child=_enter_child)


def keep_for_ever(thing: object) -> None:
    """Takes care that the end of ``thing`` never comes in this process, not even when the interpreter ends."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


class OwnProcess:
    """The process that something was made in, which alone can use it."""

    def __init__(self, what: str) -> None:
        """Remembers this process, and ``what`` was made in it, for messages."""
        self._what, self._process_id = what, os.getpid()

    def __bool__(self) -> bool:
        """Whether this is still that process."""
        return os.getpid() == self._process_id

    def require(self) -> None:
        """Refuses to go on in a forked child.

        Raises:
            RunError: this is another process.
        """
        if not self:
            raise RunError(
                f"this {self._what} was opened by process {self._process_id}, and its threads are not in process "
                f"{os.getpid()}, which was forked from it; open the {self._what} in this process"
            )

    def call(self, function: Callable[..., Any], *arguments: object) -> Any:
        """What a function returns; a child that is forked inside it, and comes out of it, ends here.

        For the threads of pools: a child would go on as one of them, and wait for ever for more to do.
        """
        try:
            returned = function(*arguments)
            self.require()
        except BaseException as error:
            if not self:
                _end_child(error)
            raise
        return returned


def _end_child(error: BaseException) -> None:
    """Ends a child as the interpreter would end: with the code of ``sys.exit``, or a traceback and 1."""
    code: object = 1
    if isinstance(error, SystemExit):
        code = error.code or 0
    else:
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)
