"""What a model goes on from; whole runs that are killed are in test_engine.py and test_end_to_end.py."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

from cbd_fast.errors import InputError, RunError
from cbd_fast.loading.augment import Augmentation
from cbd_fast.training.checked_json import read_object
from cbd_fast.training.checkpoint import best_files, checkpoints
from cbd_fast.training.finished import read_result
from cbd_fast.training.model_folder import ModelCard
from cbd_fast.training.train_step import TrainStep
from cbd_fast.training.training_state import TrainingState

CARD = ModelCard(
    name="student",
    stage="student",
    backbone="small_convnet",
    num_classes=1,
    feature_dim=1,
    classes=("ant",),
    train_counts=(1,),
    image_size=8,
    preprocessing=Augmentation(crop="center"),
    training={},
)


IDENTITY = {"seed": 3, "images": "12ab"}
NOTHING = {"metrics": {}, "counts": []}


@pytest.fixture
def spec(tmp_path):
    return SimpleNamespace(folder=tmp_path / "student", identity=IDENTITY)


def train_step_of(seed: int, precision="no") -> TrainStep:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    accelerator = Accelerator(cpu=True)
    if precision == "fp16":
        accelerator.scaler = torch.amp.GradScaler("cpu")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return TrainStep(
        accelerator=accelerator,
        unwrapped_model=model,
        model=model,
        optimizer=optimizer,
        teachers=None,
        objective=None,
        layout=None,
    )


def learn(train_step: TrainStep) -> None:
    train_step.unwrapped_model(torch.rand(5, 3)).square().sum().backward()
    train_step.optimizer.step()


def same(first: TrainStep, second: TrainStep) -> bool:
    pairs = zip(first.unwrapped_model.state_dict().values(), second.unwrapped_model.state_dict().values(), strict=True)
    return all(torch.equal(value, other) for value, other in pairs)


def test_without_a_checkpoint_all_begins(spec):
    state = TrainingState(train_step_of(0), spec, selects_best=False)
    assert (state.first_step, state.best) == (0, None)
    assert not spec.folder.exists()


@pytest.mark.parametrize("precision", ["no", "fp16"])
def test_goes_on_from_the_last_checkpoint(spec, precision):
    train_step, other = train_step_of(0, precision), train_step_of(1, precision)
    learn(train_step)
    if precision == "fp16":
        train_step.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    TrainingState(train_step, spec, selects_best=False).save(7)
    assert not same(train_step, other)
    if precision == "fp16":
        other.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    assert TrainingState(other, spec, selects_best=False).first_step == 7
    assert same(train_step, other)
    weight, other_weight = train_step.unwrapped_model[0].weight, other.unwrapped_model[0].weight
    momentum = train_step.optimizer.state[weight]["momentum_buffer"]
    assert torch.equal(other.optimizer.state[other_weight]["momentum_buffer"], momentum)
    if precision == "fp16":
        assert other.accelerator.scaler.state_dict()["scale"] == 8


def test_seconds_add_up(spec):
    clock = iter([100.0, 160.0, 1000.0, 1030.0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cbd_fast.training.training_state.time", SimpleNamespace(perf_counter=lambda: next(clock)))
        TrainingState(train_step_of(0), spec, selects_best=False).save(7)
        TrainingState(train_step_of(0), spec, selects_best=False).finish(NOTHING, CARD)
    assert read_result(spec.folder).seconds == 60 + 30


def test_the_end_replaces_the_checkpoints(spec):
    train_step = train_step_of(0)
    state = TrainingState(train_step, spec, selects_best=False)
    state.save(7)
    state.finish({"metrics": {"top1": 50.0}, "counts": [[2], [1], [2]]}, CARD)
    assert not checkpoints(spec.folder)
    result = read_result(spec.folder)
    assert (result.metrics, result.identity) == ({"top1": 50.0}, IDENTITY)
    assert result.counts == ((2,), (1,), (2,))
    assert result.selected is None
    saved = load_file(spec.folder / "model.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in train_step.unwrapped_model.state_dict().items())


def test_the_best_weights_are_known_again(spec):
    train_step = train_step_of(0)
    state = TrainingState(train_step, spec, selects_best=True)
    state.best.consider(5, 40.0, train_step.unwrapped_model)
    state.save(7)
    again = TrainingState(train_step_of(1), spec, selects_best=True)
    assert again.best.state.model_dump() == {"step": 5, "per_class_mean": 40.0}
    again.finish(NOTHING, CARD)
    assert read_result(spec.folder).selected.model_dump() == {"step": 5, "per_class_mean": 40.0}


def test_only_the_main_process_writes(spec):
    train_step = train_step_of(0)
    other = SimpleNamespace(
        is_main_process=False, num_processes=1, scaler=None, wait_for_everyone=train_step.accelerator.wait_for_everyone
    )
    state = TrainingState(replace(train_step, accelerator=other), spec, selects_best=True)
    state.save(7)
    state.finish(NOTHING, CARD)
    assert not spec.folder.exists()


def flip_last_bit(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_damaged_best_weights_fall_back_with_the_checkpoint_that_knows_them(spec):
    train_step = train_step_of(0)
    state = TrainingState(train_step, spec, selects_best=True)
    for step, accuracy in ((5, 40.0), (10, 50.0)):
        state.best.consider(step, accuracy, train_step.unwrapped_model)
        state.save(step + 1)
    assert [path.name for path in best_files(spec.folder)] == ["best-00000005.safetensors", "best-00000010.safetensors"]
    flip_last_bit(spec.folder / "best-00000010.safetensors")
    again = TrainingState(train_step_of(1), spec, selects_best=True)
    assert (again.first_step, again.best.state.step) == (6, 5)
    assert "best-00000010.safetensors: damaged" in again.damaged[0]
    flip_last_bit(spec.folder / "best-00000005.safetensors")
    with pytest.raises(InputError, match=r"best-00000010.*damaged.*best-00000005.*damaged.*remove these folders"):
        TrainingState(train_step_of(1), spec, selects_best=True)


def test_best_weights_that_are_damaged_later_are_not_taken(spec):
    state = TrainingState(train_step := train_step_of(0), spec, selects_best=True)
    state.best.consider(5, 40.0, train_step.unwrapped_model)
    flip_last_bit(spec.folder / "best-00000005.safetensors")
    with pytest.raises(InputError, match=rf"best-00000005\.safetensors: damaged .*; remove {spec.folder} to train it"):
        state.best.load(train_step.unwrapped_model)


def test_best_weights_that_are_not_finite_replace_nothing(spec):
    state = TrainingState(train_step := train_step_of(0), spec, selects_best=True)
    state.best.consider(5, 40.0, train_step.unwrapped_model)
    with torch.no_grad():
        train_step.unwrapped_model[0].weight[0, 0] = float("nan")
    with pytest.raises(RunError, match="not written"):
        state.best.consider(10, 50.0, train_step.unwrapped_model)
    assert state.best.state.step == 5
    assert [path.name for path in best_files(spec.folder)] == ["best-00000005.safetensors"]


def test_a_loss_scale_of_another_kind_is_refused(spec):
    TrainingState(train_step_of(0, "fp16"), spec, selects_best=False).save(7)
    path = spec.folder / "checkpoint-00000007" / "state.json"
    path.write_text(json.dumps(read_object(path, "") | {"scaler": {"scale": 8.0}}))
    with pytest.raises(InputError, match=r"state\.json: damaged \(scaler has \['scale'\], not \["):
        TrainingState(train_step_of(1, "fp16"), spec, selects_best=False)
