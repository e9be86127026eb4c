"""What the meter adds up; its evaluations are in test_selection.py and test_engine.py."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from cbd_fast.errors import RunError
from cbd_fast.loading.stats import LoaderStats
from cbd_fast.training.meter import Meter
from cbd_fast.training.saved_state import MeterState
from tests.helpers import config_of


class Logged(list):
    """RunDir or dashboard: remembers what it is told."""

    log = list.append

    def sync(self):
        pass

    def begin(self, name, first):
        self.append((name, first))


@pytest.fixture
def context():
    return SimpleNamespace(
        accelerator=Accelerator(cpu=True), run_dir=Logged(), dashboard=Logged(), config=config_of("run")
    )


def loader_of(num_batches: int, bad_images=()):
    """A loader that has made so many batches in 0.1 s each."""
    stats = LoaderStats(num_batches=num_batches, decoding_seconds=0.1 * num_batches)
    return SimpleNamespace(bad_images=bad_images, stats=lambda: stats)


def meter_of(context) -> Meter:
    return Meter(context, spec_of(), 10)


def spec_of():
    return SimpleNamespace(name="student", stage="student", folder=Path("student"), teachers=(), num_steps=1000)


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


def test_the_first_step_without_a_loss_is_named(context):
    meter = meter_of(context)
    for loss in (1.0, 2.0, float("inf"), 3.0):  # of two parts of each step
        meter.add({"loss": torch.tensor(loss)}, torch.eye(1), torch.tensor([0]))
    with pytest.raises(RunError, match=r"somewhere in steps 11 to 12 \(step 12: images a\.jpg, b\.jpg, all in"):
        meter.require_finite_losses(12, planned_loader())
    assert context.run_dir[-1]["indices"] == [11, 12]  # of step 12, which is number 11


def planned_loader():
    """A loader whose images of a step are the step's number and the next."""
    return SimpleNamespace(
        plan=lambda step: SimpleNamespace(indices=np.array([step, step + 1])),
        shards=SimpleNamespace(name=lambda index: {11: "a.jpg", 12: "b.jpg"}[int(index)]),
    )


def test_a_line_goes_on_where_the_checkpoint_was(context):
    def added(meter, losses):
        for loss in losses:
            meter.add({"loss": torch.tensor(loss)}, torch.eye(2), torch.tensor([0, 1]))
        return meter

    loader = loader_of(4, bad_images=[7])
    losses = [0.1, 0.2, 0.3, 0.7]
    added(meter_of(context), losses).log(14, 0.1, loader)
    state = added(meter_of(context), losses[:2]).state(12, loader)
    state = MeterState.model_validate_json(state.model_dump_json())
    added(Meter(context, spec_of(), 12, state), losses[2:]).log(14, 0.1, loader_of(4, bad_images=[3]))
    whole, resumed = context.run_dir
    assert resumed["loss"] == whole["loss"]  # to the last bit
    assert resumed["train_top1"] == whole["train_top1"] == 100
    assert (whole["bad_images"], resumed["bad_images"]) == (1, 2)


def test_sums_of_other_processes_become_the_first_ones(context):
    sums = {"loss": (2.0, 4.0), "correct": (1.0, 0.0)}
    state = MeterState(step=11, last_step=10, seconds=1.0, sums=sums, num_images=(2, 2), seconds_waited=(0.0, 0.0))
    Meter(context, spec_of(), 11, state).log(11, 0.1, loader_of(1))
    assert (context.run_dir[0]["loss"], context.run_dir[0]["train_top1"]) == (1.5, 25)


def test_a_line_that_is_complete_leaves_nothing_to_go_on_with(context):
    meter, loader = meter_of(context), loader_of(1)
    meter.add({"loss": torch.tensor(5.0)}, torch.eye(1), torch.tensor([0]))
    meter.log(11, 0.1, loader)
    state = meter.state(11, loader)
    assert (state.sums, state.num_images) == ({}, (0,))


def test_a_run_whose_updates_are_all_passed_over_ends(context):
    spec = spec_of()
    skipped, done = SimpleNamespace(step_was_skipped=True), SimpleNamespace(step_was_skipped=False)
    meter = Meter(context, spec, 0)
    for _ in range(49):
        meter.count_update(skipped)
    meter.require_finite_losses(49)  # the scale may still be on its way
    meter.count_update(skipped)
    with pytest.raises(RunError, match="student: all 50 updates were passed over"):
        meter.require_finite_losses(50)
    meter.count_update(done)
    meter.require_finite_losses(51)
    short = Meter(context, SimpleNamespace(**vars(spec) | {"num_steps": 3}), 0)
    for _ in range(3):
        short.count_update(skipped)
    with pytest.raises(RunError, match="all 3 updates"):
        short.require_finite_losses(3)
