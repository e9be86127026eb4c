"""Processes that make shards: the command hands each one shard after the other, until none is left.

Processes, not threads: much of the work is Python's, and a decoder that crashes on a damaged image ends its process
alone. All that they leave is in the work folder, so whoever comes next finds it, however this command ends.

A worker says ``next`` on its standard output for each shard that it can take, and gets its number in the plan, or
``end``. When its standard input ends without that, the command is dead, and the worker ends at once: otherwise it would
go on, and be in the way of the same command given again.
"""

import json
import mmap
import os
import selectors
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from typing import NoReturn

import numpy as np
from PIL import Image

from cbd_fast.errors import AFTER_MENDING, InputError, RunError, describe_os_error, full_disk_error, printable
from cbd_fast.files import write_atomically
from cbd_fast.shards.writing.catalog import open_catalog
from cbd_fast.shards.writing.deep_pixels import RangeNeededError
from cbd_fast.shards.writing.tar_writer import ShardWriter
from cbd_fast.shards.writing.work_items import Skipped, WorkPlan

POLL_SECONDS = 0.1
PLAN_NAME, PROGRESS_NAME = "plan.json", "cbd_fast progress"
NUM_IMAGES, NUM_BAD, ITEM, POSITION = range(4)  # columns of the progress, of which each worker writes one row
NUM_COLUMNS = 4
NUM_SHOWN = 5


class TooManyBadError(RunError):
    """More images cannot be used than are allowed; ``skipped`` are those of the unfinished shard."""

    def __init__(self, message: str, skipped: list[Skipped]) -> None:
        """The error with the images left out of the unfinished shard."""
        super().__init__(message)
        self.skipped = skipped


def make_shards(plan: WorkPlan, num_workers: int, on_progress: Callable[[int], None]) -> None:
    """Makes the shards of a plan.

    Args:
        plan: what is to be done.
        num_workers: processes.
        on_progress: called with the number of images that were looked at since the workers started.

    Raises:
        RunError: a shard could not be made, or too many images are bad.
        OSError: the work folder cannot be written.
    """
    if not plan.items:
        return
    num_workers = min(num_workers, len(plan.items))
    write_atomically(plan.work / PLAN_NAME, plan.to_json())
    # on no file system, as some cannot share what is mapped; the workers inherit it
    descriptor = os.memfd_create(PROGRESS_NAME, 0)
    workers: list[subprocess.Popen[str]] = []
    try:
        os.ftruncate(descriptor, num_workers * NUM_COLUMNS * np.dtype(np.int64).itemsize)
        progress = _progress(descriptor)
        upcoming = iter(range(len(plan.items)))
        for number in range(num_workers):
            workers.append(_start(plan.work, number, descriptor))
        with selectors.DefaultSelector() as selector:
            for number, worker in enumerate(workers):
                assert worker.stdout is not None
                selector.register(worker.stdout, selectors.EVENT_READ, number)
            while selector.get_map():
                for key, _ in selector.select(POLL_SECONDS):
                    if not _answer(workers[key.data], plan, progress[key.data], upcoming):
                        selector.unregister(key.fileobj)
                on_progress(int(progress[:, NUM_IMAGES].sum()))
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
        os.close(descriptor)


def _start(work: Path, number: int, descriptor: int) -> "subprocess.Popen[str]":
    package = str(Path(__file__).parents[3])
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-m", __name__, str(work), str(number), str(descriptor)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        close_fds=False,  # a worker that outlives a killed command keeps its folder from the next one
        # one core each: the parallelism is over workers
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )


def _answer(worker: "subprocess.Popen[str]", plan: WorkPlan, progress: np.ndarray, upcoming: Iterator[int]) -> bool:
    """Reads what a worker says; false if it has ended well."""
    assert worker.stdout is not None
    assert worker.stdin is not None
    line = worker.stdout.readline()
    if line == "next\n":
        item_number = next(upcoming, None)
        try:
            worker.stdin.write("end\n" if item_number is None else f"{item_number}\n")
            worker.stdin.flush()
        except BrokenPipeError:  # it has just died; the end of its output will say so
            pass
        return True
    if line:
        message = json.loads(line)
        if message["skipped"]:
            raise TooManyBadError(message["error"], [Skipped(**skip) for skip in message["skipped"]])
        raise RunError(message["error"])
    if worker.wait() != 0:
        raise RunError(_death(plan, progress, worker.returncode))
    return False


def _death(plan: WorkPlan, progress: np.ndarray, exitcode: int) -> str:
    """The message on a worker that died without a word: what it was doing."""
    cause = f"was killed by signal {-exitcode}" if exitcode < 0 else f"ended with {exitcode}"
    item, position = plan.items[int(progress[ITEM])], int(progress[POSITION])
    with open_catalog(plan.catalog) as catalog:
        names = [image.name for image in catalog.images(item.split, range(position, position + 1))]
    doing = f" at {printable(names[0])!r} of {item.split}, or just after it" if names else ""
    return f"a worker {cause}{doing}; if it was killed for its memory, give fewer --workers"


def _progress(descriptor: int) -> np.ndarray:
    """``(num_workers, NUM_COLUMNS)`` int64, shared by the command and its workers."""
    return np.frombuffer(mmap.mmap(descriptor, 0), np.int64).reshape(-1, NUM_COLUMNS)


def _work(work: Path, number: int, descriptor: int) -> None:
    plan = WorkPlan.from_json((work / PLAN_NAME).read_text())
    progress_of_all = _progress(descriptor)
    progress = progress_of_all[number]

    def on_image() -> None:
        progress[NUM_IMAGES] += 1
        progress[POSITION] += 1

    def on_skip(skipped: list[Skipped]) -> None:
        progress[NUM_BAD] += 1
        num_bad = plan.num_bad + int(progress_of_all[:, NUM_BAD].sum())
        if num_bad > plan.num_bad_allowed:
            raise TooManyBadError(
                f"{num_bad:,} images cannot be used, and {plan.num_bad_allowed:,} are allowed (--max-bad, --strict): "
                f"{'; '.join(map(str, skipped[-NUM_SHOWN:]))}",
                skipped,
            )

    writer = ShardWriter(plan, on_image, on_skip)
    try:
        with open_catalog(plan.catalog) as catalog:
            for item_number in _item_numbers():
                item = plan.items[item_number]
                progress[ITEM], progress[POSITION] = item_number, item.start - 1
                try:
                    writer.make(item, catalog.images(item.split, item.positions))
                except RangeNeededError:
                    progress[NUM_IMAGES] -= progress[POSITION] - item.start + 1
                    progress[POSITION] = item.start - 1
                    writer.measure(item, catalog.images(item.split, item.positions))
                except OSError as error:
                    num_bytes = sum(image.num_bytes or 0 for image in catalog.images(item.split, item.positions))
                    raise full_disk_error(error, plan.folder / item.file, num_bytes) or error from error
    finally:
        writer.finish()  # whatever became of the last shard, the one before is whole


def _item_numbers() -> Iterator[int]:
    """Numbers in the plan of the shards that the command gives to this worker."""
    lines: SimpleQueue[str] = SimpleQueue()

    def listen() -> None:
        line = ""
        for line in sys.stdin:
            lines.put(line)
        if line != "end\n":
            os._exit(1)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        print("next", flush=True)
        if (line := lines.get()) == "end\n":
            return
        yield int(line)


def main() -> NoReturn:
    """A worker: ``python -m cbd_fast.shards.writing.worker_pool WORK NUMBER PROGRESS``."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)  # the command hears it, and ends its workers
    Image.MAX_IMAGE_PIXELS = None  # --max-pixels decides
    warnings.simplefilter("ignore")  # Pillow warns about odd metadata of images that decode well
    try:
        _work(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    except (OSError, InputError, RunError) as error:
        skipped = error.skipped if isinstance(error, TooManyBadError) else []
        message = f"{describe_os_error(error)}; {AFTER_MENDING}" if isinstance(error, OSError) else str(error)
        print(json.dumps({"error": message, "skipped": [asdict(skip) for skip in skipped]}), flush=True)
        os._exit(1)
    os._exit(0)  # a thread may still wait for the command


if __name__ == "__main__":
    main()
