"""Processes that make shards: each takes the next one that nobody has taken, until none is left.

Processes, not threads: much of the work is Python's, and a decoder that crashes on a damaged picture ends its process
alone. What they report is on the disk, so whoever comes next finds it, however this command ends.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from PIL import Image

from cbd_fast.errors import InputError, RunError
from cbd_fast.sharding.listing import read_listing
from cbd_fast.sharding.shard_writer import Shard, ShardWriter, Skipped, Surroundings, printable

POLL_SECONDS = 0.1
NUM_SHOWN = 5
NO_PICTURE = -1


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the workers do together.

    Attributes:
        surroundings: of all shards.
        listing: the finished listing.
        shards: those that are to be made.
        num_bad: pictures that were left out of shards made before.
        num_bad_allowed: more end the command.
    """

    surroundings: Surroundings
    listing: Path
    shards: Sequence[Shard]
    num_bad: int
    num_bad_allowed: int


class _Shared:
    """Numbers that workers write and the command reads."""

    def __init__(self, context: Any, num_workers: int, num_bad: int) -> None:
        self.next_shard = context.Value("q", 0)
        self.num_bad = context.Value("q", num_bad)
        # one place per worker, so nobody waits for anybody
        self.num_pictures = context.Array("q", num_workers, lock=False)
        self.shard = context.Array("q", [NO_PICTURE] * num_workers, lock=False)
        self.place = context.Array("q", num_workers, lock=False)


def make_shards(job: Job, num_workers: int, on_progress: Callable[[int], None]) -> None:
    """Makes the shards of a job.

    Args:
        job: what is to be done.
        num_workers: processes.
        on_progress: called with the number of pictures that were looked at so far.

    Raises:
        RunError: a shard could not be made, or too many pictures are bad.
    """
    if not job.shards:
        return
    # not fork: the command's process has threads
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__])
    num_workers = min(num_workers, len(job.shards))
    shared, errors = _Shared(context, num_workers, job.num_bad), context.SimpleQueue()
    workers = [
        context.Process(target=_work, args=(job, shared, number, errors), daemon=True) for number in range(num_workers)
    ]
    try:
        for worker in workers:
            worker.start()
        running = list(workers)
        while running:
            wait([worker.sentinel for worker in running], timeout=POLL_SECONDS)
            on_progress(sum(shared.num_pictures))
            for number, worker in enumerate(workers):
                if worker.exitcode not in (None, 0):
                    raise RunError(errors.get() if not errors.empty() else _death(job, shared, number, worker.exitcode))
            running = [worker for worker in running if worker.is_alive()]
    finally:
        for worker in workers:
            if worker.pid is not None:
                worker.kill()
                worker.join()


def _work(job: Job, shared: _Shared, number: int, errors: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command hears it, and ends its workers
    threading.Thread(target=_end_with_the_command, daemon=True).start()
    Image.MAX_IMAGE_PIXELS = None  # --max-pixels decides

    def on_picture() -> None:
        shared.num_pictures[number] += 1
        shared.place[number] += 1

    def on_skip(skipped: list[Skipped]) -> None:
        with shared.num_bad.get_lock():
            shared.num_bad.value += 1
            num_bad = shared.num_bad.value
        if num_bad > job.num_bad_allowed:
            shown = "; ".join(f"{skip.split}/{printable(skip.name)}: {skip.reason}" for skip in skipped[-NUM_SHOWN:])
            raise RunError(
                f"{num_bad:,} pictures cannot be used, and {job.num_bad_allowed:,} are allowed (--max-bad, --strict): "
                f"{shown}"
            )

    try:
        writer = ShardWriter(job.surroundings, on_picture, on_skip)
        with read_listing(job.listing) as listing:
            while True:
                with shared.next_shard.get_lock():
                    taken = int(shared.next_shard.value)
                    shared.next_shard.value += 1
                if taken >= len(job.shards):
                    break
                shard = job.shards[taken]
                shared.place[number] = shard.places.start - 1
                shared.shard[number] = taken
                writer.make(shard, listing.pictures(shard.split, shard.places))
        shared.shard[number] = NO_PICTURE
        writer.finish()
    except (OSError, InputError, RunError) as error:
        errors.put(str(error))
        os._exit(1)


def _end_with_the_command() -> None:
    """A worker whose command was killed would go on, and be in the way of the same command given again."""
    command = multiprocessing.parent_process()
    assert command is not None
    command.join()
    os._exit(1)


def _death(job: Job, shared: _Shared, number: int, exitcode: int | None) -> str:
    """What a worker did when it died without a word."""
    cause = f"was killed by signal {-exitcode}" if exitcode and exitcode < 0 else f"ended with {exitcode}"
    doing = ""
    if (taken := shared.shard[number]) != NO_PICTURE:
        shard, place = job.shards[taken], shared.place[number]
        with read_listing(job.listing) as listing:
            names = [picture.name for picture in listing.pictures(shard.split, range(place, place + 1))]
        doing = f" at {printable(names[0])!r} of {shard.split}, or just after it" if names else ""
    return f"a worker {cause}{doing}; if it was killed for its memory, give fewer --workers"
