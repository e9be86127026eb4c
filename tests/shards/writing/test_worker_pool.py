import os
import signal
import subprocess

import psutil
import pytest

from cbd_fast.errors import Stopped
from cbd_fast.shards.sources.image_folder import folder_source
from cbd_fast.shards.writing import worker_pool
from cbd_fast.shards.writing.dataset_writer import write_dataset
from cbd_fast.shards.writing.options import ShardSize, WriteListener, WriteOptions


def write(image_folder, out, listener=None):
    source = folder_source({"train": image_folder / "train"})
    options = WriteOptions(size=ShardSize(num_images=3))
    return write_dataset(source, out, options, num_workers=2, listener=listener)


class StoppedListener(WriteListener):
    """Does to the command or its workers what a signal does, once the first images are done."""

    def __init__(self, do):
        self.do = do

    def update(self, num_images):
        if num_images > 2 and self.do:
            do, self.do = self.do, None
            do()


def workers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "worker_pool" in " ".join(child.cmdline())]


def test_no_worker_outlives_a_stopped_command(image_folder, tmp_path):
    seen = []

    def stop():
        seen.extend(workers())
        raise Stopped(signal.SIGTERM)

    with pytest.raises(Stopped):
        write(image_folder, tmp_path / "out", StoppedListener(stop))
    assert seen
    assert not any(worker.is_running() for worker in seen)
    write(image_folder, tmp_path / "out")  # goes on


def test_workers_leave_signals_to_the_command(image_folder, tmp_path):
    """A signal to the whole group, as a terminal and batch systems send it, is the command's to answer."""

    def signal_workers():
        for worker in workers():
            for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                worker.send_signal(signum)

    assert write(image_folder, tmp_path / "out", StoppedListener(signal_workers)).is_new


def test_workers_that_cannot_all_be_started_are_ended(image_folder, tmp_path, monkeypatch):
    start, started = worker_pool._start, []

    def start_one(*arguments):
        if started:
            raise OSError(24, os.strerror(24))
        started.append(start(*arguments))
        return started[0]

    monkeypatch.setattr(worker_pool, "_start", start_one)
    with pytest.raises(RuntimeError, match=r"Too many open files .*raise it with ulimit -n"):
        write(image_folder, tmp_path / "out")
    assert isinstance(started[0], subprocess.Popen)
    assert started[0].returncode == -signal.SIGKILL
