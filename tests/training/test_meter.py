"""What the meter adds up; its evaluations are in test_selection.py and test_engine.py."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from cbd_fast.errors import RunError
from cbd_fast.loading.stats import LoaderStats
from cbd_fast.training.meter import Meter


class Logged(list):
    """RunDir or dashboard: remembers what it is told."""

    log = list.append

    def begin(self, name, first):
        self.append((name, first))


@pytest.fixture
def context():
    return SimpleNamespace(accelerator=Accelerator(cpu=True), run_dir=Logged(), dashboard=Logged())


def loader_of(num_batches: int, bad_images=()):
    """A loader that has made so many batches in 0.1 s each."""
    stats = LoaderStats(num_batches=num_batches, decoding_seconds=0.1 * num_batches)
    return SimpleNamespace(bad_images=bad_images, stats=lambda: stats)


def meter_of(context) -> Meter:
    return Meter(context, SimpleNamespace(name="student", folder=Path()), 10)


def test_means_are_over_images_whatever_the_parts(context):
    meter = meter_of(context)
    assert context.dashboard == [("student", 10)]
    right = torch.eye(3)  # the image of a row is of that class
    meter.add({"loss": torch.tensor(1.0)}, right, torch.tensor([0, 1, 2]))
    meter.add({"loss": torch.tensor(5.0)}, right[:1], torch.tensor([2]))
    meter.log(20, 0.1, loader_of(4, bad_images=[7, 3]))
    (record,) = context.run_dir
    assert record == context.dashboard[1]
    assert (record["model"], record["step"], record["learning_rate"]) == ("student", 20, 0.1)
    assert record["loss"] == 2  # (3 x 1 + 1 x 5) / 4
    assert record["train_top1"] == 75
    assert record["bad_images"] == 2
    assert record["batch_milliseconds"]["decoding"] == pytest.approx(100)


def test_every_line_begins_anew(context):
    meter, loader = meter_of(context), loader_of(4)
    for loss in (1.0, 3.0):
        meter.add({"loss": torch.tensor(loss)}, torch.eye(2), torch.tensor([0, 1]))
        meter.log(20, 0.1, loader)
    assert [record["loss"] for record in context.run_dir] == [1, 3]
    assert context.run_dir[1]["batch_milliseconds"]["decoding"] == 0  # no batch since


def test_waiting_passes_all_on_and_is_measured(context):
    meter = meter_of(context)
    assert list(meter.waiting(iter("abc"))) == ["a", "b", "c"]
    meter.add({"loss": torch.tensor(1.0)}, torch.eye(1), torch.tensor([0]))
    meter.log(11, 0.1, loader_of(1))
    assert 0 < context.run_dir[0]["data_wait_fraction"] <= 1


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_losses_that_are_not_finite_are_refused(context, loss):
    meter = meter_of(context)
    meter.add({"loss": torch.tensor(1.0)}, torch.eye(1), torch.tensor([0]))
    assert meter.require_finite_losses(11)["loss"] == 1
    meter.add({"loss": torch.tensor(loss)}, torch.eye(1), torch.tensor([0]))
    with pytest.raises(RunError, match="student: the loss is not finite somewhere in steps 11 to 12"):
        meter.require_finite_losses(12)
