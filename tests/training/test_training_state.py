"""What a model goes on from; whole runs that are killed are in test_engine.py and test_end_to_end.py."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

from cbd_fast.training.checkpoint import checkpoints, read_result
from cbd_fast.training.train_step import Learner
from cbd_fast.training.training_state import Progress


@pytest.fixture
def job(tmp_path):
    return SimpleNamespace(folder=tmp_path / "student", identity={"seed": 3})


def learner_of(seed: int, precision="no") -> Learner:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    accelerator = Accelerator(cpu=True)
    if precision == "fp16":
        accelerator.scaler = torch.amp.GradScaler("cpu")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Learner(
        accelerator=accelerator, plain=model, model=model, optimizer=optimizer, teachers=None, losses=None, layout=None
    )


def learn(learner: Learner) -> None:
    learner.plain(torch.rand(5, 3)).square().sum().backward()
    learner.optimizer.step()


def same(first: Learner, second: Learner) -> bool:
    pairs = zip(first.plain.state_dict().values(), second.plain.state_dict().values(), strict=True)
    return all(torch.equal(value, other) for value, other in pairs)


def test_without_a_checkpoint_all_begins(job):
    progress = Progress(learner_of(0), job, selects_best=False)
    assert (progress.first, progress.best) == (0, None)
    assert not job.folder.exists()


@pytest.mark.parametrize("precision", ["no", "fp16"])
def test_goes_on_from_the_last_checkpoint(job, precision):
    learner, other = learner_of(0, precision), learner_of(1, precision)
    learn(learner)
    if precision == "fp16":
        learner.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    Progress(learner, job, selects_best=False).save(7)
    assert not same(learner, other)
    if precision == "fp16":
        other.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    assert Progress(other, job, selects_best=False).first == 7
    assert same(learner, other)
    weight, other_weight = learner.plain[0].weight, other.plain[0].weight
    momentum = learner.optimizer.state[weight]["momentum_buffer"]
    assert torch.equal(other.optimizer.state[other_weight]["momentum_buffer"], momentum)
    if precision == "fp16":
        assert other.accelerator.scaler.state_dict()["scale"] == 8


def test_seconds_add_up(job):
    clock = iter([100.0, 160.0, 1000.0, 1030.0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cbd_fast.training.training_state.time", SimpleNamespace(perf_counter=lambda: next(clock)))
        Progress(learner_of(0), job, selects_best=False).save(7)
        Progress(learner_of(0), job, selects_best=False).finish({})
    assert read_result(job.folder)["seconds"] == 60 + 30


def test_the_end_replaces_the_checkpoints(job):
    learner = learner_of(0)
    progress = Progress(learner, job, selects_best=False)
    progress.save(7)
    progress.finish({"metrics": {"top1": 50.0}})
    assert not checkpoints(job.folder)
    result = read_result(job.folder)
    assert (result["metrics"], result["identity"]) == ({"top1": 50.0}, {"seed": 3})
    assert result["selected"] is None
    saved = load_file(job.folder / "model.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in learner.plain.state_dict().items())


def test_the_best_weights_are_known_again(job):
    learner = learner_of(0)
    progress = Progress(learner, job, selects_best=True)
    progress.best.offer(5, 40.0, learner.plain)
    progress.save(7)
    again = Progress(learner_of(1), job, selects_best=True)
    assert again.best.state == {"step": 5, "per_class_mean": 40.0}
    again.finish({})
    assert read_result(job.folder)["selected"] == {"step": 5, "per_class_mean": 40.0}


def test_only_the_main_process_writes(job):
    learner = learner_of(0)
    other = SimpleNamespace(
        is_main_process=False, num_processes=1, scaler=None, wait_for_everyone=learner.accelerator.wait_for_everyone
    )
    progress = Progress(replace(learner, accelerator=other), job, selects_best=True)
    progress.save(7)
    progress.finish({})
    assert not job.folder.exists()
