"""Runs that become NaN or infinite: nothing that is of no use is saved, and the advice works when it is followed."""

import shlex
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from cbd_fast.config.schema import Config
from cbd_fast.errors import RunError
from cbd_fast.registry import BACKBONES, METRICS
from cbd_fast.training import engine
from cbd_fast.training.checkpoint import checkpoints
from cbd_fast.training.train_step import TrainStep
from tests.helpers import digits_config, metrics_of, registered, run_in_process

pytestmark = pytest.mark.slow

SHORT = {"optimization": {"steps": 9, "base_learning_rate": 0.4}}


@pytest.fixture
def broken(monkeypatch):
    """Makes a tensor infinite after an update: ``broken(name of the model, number of the step, how)``."""

    def break_at(model, step, how):
        update = TrainStep.update

        def broken_update(self, batch, *args):
            yield from update(self, batch, *args)
            if batch.step + 1 == step and self.unwrapped_model.name == model:
                how(self)

        def named(setup, *args):
            train_step = made(setup, *args)
            train_step.unwrapped_model.name = setup.spec.name
            return train_step

        made = engine.make_train_step
        monkeypatch.setattr(engine, "make_train_step", named)
        monkeypatch.setattr(TrainStep, "update", broken_update)

    return break_at


def break_statistics(train_step):
    dict(train_step.unwrapped_model.named_buffers())["backbone.1.running_var"][0] = float("inf")


def break_weight(train_step):
    with torch.no_grad():
        train_step.unwrapped_model.weight[0, 0] = float("nan")


def break_momentum(train_step):
    parameter = train_step.unwrapped_model.weight
    train_step.optimizer.state[parameter]["momentum_buffer"][0, 0] = float("inf")


def followed(config: Config, error: RunError) -> Config:
    """The same run with the settings that a message advises, as a shell would pass them on."""
    advised = shlex.split(str(error).split("with a lower learning rate: ")[1])
    path = Path(config.output + ".yaml")
    path.write_text(config.to_yaml())
    return Config.from_file(path, advised)


@pytest.mark.parametrize(
    ("how", "step", "message"),
    [
        (break_statistics, 5, r"not finite after step 6: backbone\.1\.running_var \(steps 5 to 6"),
        (break_weight, 5, r"the loss is not finite somewhere in steps 6 to 6 \(step 6"),
        (break_momentum, 6, r"not finite after step 6: momentum of weight \(steps 5 to 6"),
    ],
)
def test_what_is_not_finite_is_not_saved_and_the_advice_works(
    digits_shards, tmp_path, broken, monkeypatch, how, step, message
):
    config = digits_config(tmp_path / "run", digits_shards, **SHORT, runtime={"checkpoint_every": 2})
    broken("student", step, how)
    with pytest.raises(
        RunError, match=rf"student: {message}: images train-.* more, all in metrics\.jsonl\)"
    ) as refused:
        run_in_process(config)
    told = str(refused.value)
    assert "\n" not in told
    folder = tmp_path / "run" / "student"
    assert f"the last good checkpoint, {folder}/checkpoint-00000004, stays" in told
    assert [path.name[-1] for path in checkpoints(folder)] == ["2", "4"]
    record = metrics_of(config.output)[-1]
    assert (record["model"], record["stage"]) == ("student", "student")
    assert len(record["indices"]) in (len(set(record["indices"])), 16)
    monkeypatch.undo()
    again = followed(config, refused.value)
    assert again.optimization.base_learning_rate == 0.1
    if how is not break_statistics:
        return
    run_in_process(again)
    assert (Path(again.output) / "student" / "result.json").exists()
    assert not (Path(again.output) / "teacher-1").exists()  # the finished one is used


def test_what_is_not_finite_at_the_end_is_not_finished(digits_shards, tmp_path, broken):
    config = digits_config(tmp_path / "run", digits_shards, **SHORT, stages="teachers")
    broken("teacher-1", 9, break_statistics)
    with pytest.raises(RunError, match=r"teacher-1: not finite after step 9: backbone\.1\.running_var"):
        run_in_process(config)
    assert not list((tmp_path / "run" / "teacher-1").glob("*.*"))
    # what a person does is to give the command again
    with pytest.raises(RunError, match="not finite after step 9"):
        run_in_process(config)


def test_a_rate_that_is_far_too_high_does_not_end_as_a_finished_model(digits_shards, tmp_path):
    optimization = {"steps": 12, "base_learning_rate": 1e15}
    config = digits_config(tmp_path / "run", digits_shards, optimization=optimization, stages="teachers")
    with pytest.raises(RunError, match=r"there is no checkpoint yet|the last good checkpoint") as refused:
        run_in_process(config)
    again = followed(config, refused.value)
    assert again.optimization.base_learning_rate == 0.1
    run_in_process(again)


def test_outputs_that_are_not_finite_are_an_error(digits_shards, tmp_path):
    class Overflows(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, images):
            features = images.mean(dim=(2, 3)) * self.scale
            return features if self.training else features * float("inf")

    with registered(BACKBONES, "overflows", lambda: (Overflows(), 3)):
        config = digits_config(
            tmp_path / "run", digits_shards, model={"backbone": "overflows"}, optimization={"steps": 2}
        )
        with pytest.raises(
            RunError, match=r"teacher-1: the outputs for 500 of 500 images of the test split are not fi"
        ):
            run_in_process(config)
    assert not (tmp_path / "run" / "teacher-1" / "result.json").exists()


def test_updates_that_are_all_passed_over_are_an_error_and_some_are_not(digits_shards, tmp_path, monkeypatch):
    options = {"stages": "teachers", "mixed_precision": "fp16", "runtime": {"checkpoint_every": 100}}
    config = digits_config(tmp_path / "run", digits_shards, **options, optimization={"steps": 3, "global_batch": 4})
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=float("inf")))
    with pytest.raises(RunError, match=r"teacher-1: all 3 updates were passed over, .*mixed_precision=bf16") as refused:
        run_in_process(config)
    assert not (tmp_path / "run" / "teacher-1" / "result.json").exists()
    monkeypatch.undo()
    assert followed(config, refused.value).mixed_precision == "bf16"


def test_metrics_that_are_no_numbers_are_not_measured(digits_shards, tmp_path):
    config = digits_config(tmp_path / "run", digits_shards, optimization={"steps": 2}, stages="teachers")
    with registered(METRICS, "mine", lambda _: float("nan")), registered(METRICS, "other", lambda _: float("inf")):
        config = config.model_copy(update={"metrics": ("top1", "mine", "other")})
        with pytest.warns(UserWarning, match="'mine': nan, 'other': inf"):
            records = run_in_process(config)
    assert [records[-1][name] for name in ("mine", "other")] == [None, None]
    assert (tmp_path / "run" / "teacher-1" / "result.json").exists()
