"""Trainings that are killed between any two things that they do to their folder, again and again."""

import os
import random
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cbd_fast import Trainer
from cbd_fast.shards.sources.image_folder import folder_source
from cbd_fast.shards.writing.dataset_writer import write_dataset
from cbd_fast.shards.writing.options import WriteOptions
from cbd_fast.ui.dashboard import NullDashboard
from tests.helpers import config_of, metrics_of

pytestmark = pytest.mark.slow

# what Python tells before it does it
CHANGES = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.truncate", "shutil.rmtree"}
TIMES = {"images_per_second", "data_wait_fraction", "batch_milliseconds", "memory_gigabytes"}
MAX_LIVES = 60  # of one run; some end before they have got any further


@pytest.fixture(scope="module")
def shards_with_val(image_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("shards") / "with_val"
    folders = {"train": image_folder / "train", "val": image_folder / "test", "test": image_folder / "test"}
    write_dataset(folder_source(folders), out, WriteOptions(), num_workers=1)
    return out


def killed_run(config, last_event: int | None) -> int | None:
    """Trains in a child, which dies before its nth change of the run's folder.

    Returns:
        None if it died, otherwise how many changes there were.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        _train(config, last_event, writing)
    os.close(writing)
    with open(reading, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), said.decode()
    return None if status else int(said)


def _train(config, last_event, writing) -> None:
    """What the child does; it never returns."""
    count, folder = 0, config.output

    def changes(event, arguments):
        nonlocal count
        if event in CHANGES and arguments and str(arguments[0]).startswith(folder):
            count += 1
            if count == last_event:
                os.kill(os.getpid(), signal.SIGKILL)

    try:
        torch.set_num_threads(1)
        sys.addaudithook(changes)
        plain_fsync = os.fsync
        os.fsync = lambda number: (changes("open", (folder,)), plain_fsync(number))
        Trainer(config, dashboard=NullDashboard()).fit()
        os.write(writing, str(count).encode())
        os._exit(0)
    except BaseException as error:
        os.write(writing, repr(error).encode())
        os._exit(1)


def config_in(folder, shards, **runtime):
    runtime = {
        "checkpoint_every": 3,
        "evaluate_every": 2,
        "log_every": 2,
        "num_threads": 1,
        "decoder": "torch",
    } | runtime
    return config_of(folder, shards, optimization={"steps": 8}, runtime=runtime | {"record_batches": True})


def outcome(config):
    """What a run leaves behind: weights, records, batches, and the names of all files."""
    folder = Path(config.output)
    weights = {path.parent.name: load_file(path) for path in sorted(folder.glob("*/*.safetensors"))}
    records = [{name: value for name, value in record.items() if name not in TIMES} for record in metrics_of(folder)]
    batches = (folder / "batches.rank-0.jsonl").read_text().splitlines()
    return weights, records, batches, sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def check_same(found, expected):
    for part, expected_part in zip(found[1:], expected[1:], strict=True):
        assert part == expected_part
    assert found[0].keys() == expected[0].keys()
    for model, tensors in expected[0].items():
        assert all(torch.equal(tensor, found[0][model][name]) for name, tensor in tensors.items()), model


def test_runs_that_are_killed_at_fifty_places_end_like_an_undisturbed_one(shards_with_val, tmp_path):
    whole = config_in(tmp_path / "whole", shards_with_val)
    num_events = killed_run(whole, None)
    assert num_events > 150
    expected, rng, num_kills = outcome(whole), random.Random(0), 0
    for number in range(100):
        config = config_in(tmp_path / str(number), shards_with_val)
        for _ in range(MAX_LIVES):
            if killed_run(config, rng.randrange(1, num_events // 2)) is not None:
                break
            num_kills += 1
        else:
            raise AssertionError("the run never ends")
        check_same(outcome(config), expected)
        if num_kills >= 50:
            return
