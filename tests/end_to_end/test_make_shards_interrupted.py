"""make_shards as users type it: killed, on a full disk, without its images."""

import fcntl
import filecmp
import os
import random
import re
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest

from cbd_fast.files import PARTIAL_SUFFIX
from tests.helpers import REPOSITORY, command_of, cut, encoded, make_shards, write


@pytest.fixture(scope="module")
def many_images(photos, tmp_path_factory) -> Path:
    """400 small images of four classes, a few of them bad."""
    rng = np.random.default_rng(1)
    root = tmp_path_factory.mktemp("many")
    for number in range(400):
        data = encoded(cut(photos[number % 2], rng))
        write(root / "abcd"[number % 4] / f"{number}.jpg", data[:100] if number % 133 == 7 else data)
    return root


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(many_images, tmp_path, workers):
    command = ["folder", "--train", many_images, "--shard-images", "8", "--max-bad", "0.1", "--seed", "5"]
    assert make_shards(*command, "--workers", "3", "--out", tmp_path / "whole").returncode == 0
    expected = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert len(expected) == 50 + 3
    moments, num_half_made = random.Random(workers), 0
    for number in range(20):
        out, half = tmp_path / str(number), tmp_path / f"{number}{PARTIAL_SUFFIX}"
        arguments = command_of("make_shards", *command, "--workers", workers, "--out", out)
        process = subprocess.Popen(arguments, cwd=REPOSITORY, stdout=subprocess.DEVNULL, start_new_session=True)
        # the moment is that of a number of shards, so that it falls into the work however fast the machine is
        num_shards = moments.randrange(-10, 50)
        while process.poll() is None and len(list(half.glob("*.tar"))) < num_shards:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.02 if num_shards > 0 else 0.5))
        if number % 2:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()  # its workers have to notice
        process.wait()
        num_half_made += 0 < len(list(half.glob("*.tar"))) < 50
        assert not out.exists() or not half.exists()
        assert not (half / "dataset.json").exists() or len(list(half.glob("*.tar"))) == 50
        done = make_shards(*command, "--workers", workers, "--out", out)
        assert done.returncode == 0, done.stderr
        assert sorted(path.name for path in out.iterdir()) == expected
        assert filecmp.cmpfiles(tmp_path / "whole", out, expected, shallow=False)[0] == expected
        assert not half.exists()
    assert num_half_made >= 10  # else little was shown


def test_workers_of_a_killed_command_keep_its_folder_until_they_end(many_images, tmp_path):
    half = tmp_path / f"out{PARTIAL_SUFFIX}"
    arguments = command_of("make_shards", "folder", "--train", many_images, "--workers", 2, "--out", tmp_path / "out")
    process = subprocess.Popen(arguments, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    while not (workers := psutil.Process(process.pid).children()):
        time.sleep(0.001)
    workers[0].suspend()
    process.kill()
    process.wait()
    with open_folder(half) as descriptor:
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        workers[0].resume()
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    workers[0].wait(5)  # a process lets go of its files a moment before it is gone


@contextmanager
def open_folder(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def test_a_full_disk_ends_with_1_and_the_command_goes_on(many_images, tmp_path):
    command = ["folder", "--train", many_images, "--max-bad", "0.1", "--out", tmp_path / "out"]

    def no_large_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))

    done = make_shards(*command, preexec_fn=no_large_files)
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert not (tmp_path / "out").exists()
    assert make_shards(*command).returncode == 0


def test_a_worker_that_dies_is_an_error_that_names_its_image(many_images, tmp_path):
    command = [
        "folder",
        "--train",
        many_images,
        "--max-bad",
        "0.1",
        "--shard-images",
        "4",
        "--out",
        tmp_path / "out",
    ]
    process = subprocess.Popen(
        command_of("make_shards", *command),
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    half = tmp_path / f"out{PARTIAL_SUFFIX}"
    while not list(half.glob("*.tar")):
        assert process.poll() is None
        time.sleep(0.001)
    psutil.Process(process.pid).children()[0].kill()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert re.search(r"a worker was killed by signal 9 at '[abcd]/\d+\.jpg' of train, or just after it", errors)
    assert make_shards(*command).returncode == 0


def test_a_lost_folder_of_images_is_not_a_thousand_bad_ones(many_images, tmp_path):
    moved = tmp_path / "moved"
    away = tmp_path / "images"
    for path in many_images.rglob("*.jpg"):
        write(away / path.relative_to(many_images), path.read_bytes())
    listed = tmp_path / "train.txt"
    names = sorted(path.relative_to(away).as_posix() for path in away.rglob("*.jpg"))
    listed.write_text("".join(f"{name} {'abcd'.index(name[0])}\n" for name in names))
    command = ["list", "--images", away, "--train", listed, "--max-bad", "1", "--out", tmp_path / "out"]
    process = subprocess.Popen(
        command_of("make_shards", *command, "--shard-images", "4", "--workers", "1"),
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
    )
    half = tmp_path / f"out{PARTIAL_SUFFIX}"
    deadline = time.monotonic() + 60
    while not list(half.glob("*.tar")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)
    away.rename(moved)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "the folder of the images is gone; once it is back, give the same command" in errors
    moved.rename(away)
    assert make_shards(*command, "--shard-images", "4").returncode == 0
    assert len((tmp_path / "out" / "skipped.csv").read_text().splitlines()) == 1 + 3


@pytest.mark.parametrize(
    ("signum", "to_all"),
    [(signal.SIGTERM, True), (signal.SIGHUP, False), (signal.SIGINT, True)],
)
def test_stopped_by_a_signal_it_says_so_and_goes_on(many_images, tmp_path, signum, to_all):
    command = ["folder", "--train", many_images, "--max-bad", "0.1", "--shard-images", "4", "--out", tmp_path / "out"]
    process = subprocess.Popen(
        command_of("make_shards", *command),
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    half = tmp_path / f"out{PARTIAL_SUFFIX}"
    while len(list(half.glob("*.tar"))) < 5:  # of which the first are finished
        assert process.poll() is None
        time.sleep(0.001)
    workers = psutil.Process(process.pid).children()
    os.killpg(process.pid, signum) if to_all else process.send_signal(signum)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 128 + signum
    assert errors == f"stopped by {signum.name}; give the same command again to go on\n"
    assert workers
    assert not any(worker.is_running() for worker in workers)
    if to_all and signum == signal.SIGTERM:
        done = make_shards(*command)
        assert done.returncode == 0
        assert "images that are done already" in done.stdout
