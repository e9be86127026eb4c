"""Every reason why a run with several processes has failed reaches the person, once."""

import hashlib
import re
import socket
import threading
import time
from contextlib import suppress

from cbd_fast.processes import (
    env_local_rank,
    env_meeting_point,
    env_world_size,
    has_agent,
    joined_processes,
    place_among_processes,
)

# how long another process waits for the first one to tell the person what both have found
ALONE_SECONDS, JOINED_SECONDS = 5.0, 2.0
_OF_ANOTHER = re.compile(r"process \d+(: | is gone)")  # what a process says of the end of another


def what_to_tell(message: str) -> str | None:
    """A message for people as this process has to tell it; None where another process of the run tells the same.

    What the first process has found is told as it is, what only another one has with its number in front. Processes
    that have joined ask their store. Before that the first one speaks at once; the others give it some time, in which
    it lets them know, or their launcher ends them.
    """
    rank, world_size = place_among_processes()
    if world_size == 1:
        return message
    is_of_another = _OF_ANOTHER.match(message) is not None
    named = message if is_of_another or not rank else f"process {rank}: {message}"
    digest = hashlib.sha256(re.sub(r"^process \d+: ", "", message).encode(errors="surrogatepass")).digest()
    try:
        if joined_processes():
            if message.startswith("process 0 is gone") and not has_agent():
                return named  # and the store with it
            return named if _may_tell(digest, waits=bool(rank) and not is_of_another) else None
        if env_local_rank() == 0:
            if rank == 0 and not has_agent():
                _let_others_know(digest)
            return message
        return None if _is_told_by_first(digest) else named
    except KeyboardInterrupt:  # the launcher ends what is left
        return None


def _may_tell(digest: bytes, waits: bool) -> bool:
    """Whether no other joined process has told this yet; those after the first wait a moment for it."""
    from torch.distributed.distributed_c10d import _get_default_store

    key = f"cbd_fast/told/{digest.hex()}"
    with suppress(RuntimeError):
        store, deadline = _get_default_store(), time.monotonic() + JOINED_SECONDS
        while waits and time.monotonic() < deadline and not store.check([key]):
            time.sleep(0.05)
        return store.add(key, 1) == 1
    return not waits  # the process that had the store is gone, and has told what all have found


def _let_others_know(digest: bytes) -> None:
    """Answers the others, where all would have met, what this process tells; it ends when they have asked."""
    meeting_point = env_meeting_point()
    if meeting_point is None:
        return
    try:
        server = socket.create_server(meeting_point)
    except OSError:
        return
    server.settimeout(ALONE_SECONDS)

    def answer() -> None:
        with server, suppress(OSError):
            for _ in range(env_world_size() - 1):
                connection, _ = server.accept()
                with connection:
                    connection.sendall(digest)

    threading.Thread(target=answer, name="cbd-told").start()


def _is_told_by_first(digest: bytes) -> bool:
    """Whether the first process, which is not joined, tells the same; it is asked until it answers or time is over."""
    meeting_point, deadline = None if has_agent() else env_meeting_point(), time.monotonic() + ALONE_SECONDS
    while time.monotonic() < deadline:
        if meeting_point:
            with suppress(OSError), socket.create_connection(meeting_point, timeout=1) as connection:
                return connection.recv(len(digest)) == digest
        time.sleep(0.2)
    return False
