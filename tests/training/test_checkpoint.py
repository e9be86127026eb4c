import json
import resource
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cbd_fast.config.sections import Optimization
from cbd_fast.errors import InputError, RunError
from cbd_fast.training import checkpoint
from cbd_fast.training.checked_json import read_object
from cbd_fast.training.checkpoint import (
    checkpoints,
    load_checkpoint,
    read_state,
    remove_checkpoints,
    save_checkpoint,
    save_weights,
)
from cbd_fast.training.models import build_model
from cbd_fast.training.optim import make_optimizer
from cbd_fast.training.saved_state import State
from cbd_fast.training.tensor_files import load_weights


def state_of(step):
    return State(step=step, identity={"images": "12ab"})


def trained(num_steps, seed=0):
    torch.manual_seed(seed)
    model = build_model("small_convnet", 4).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model, Optimization(epochs=1))
    take_steps(model, optimizer, num_steps)
    return model, optimizer


def take_steps(model, optimizer, num_steps):
    generator = torch.Generator().manual_seed(num_steps)
    for _ in range(num_steps):
        optimizer.zero_grad()
        model(torch.rand(4, 3, 16, 16, generator=generator)).logits.square().mean().backward()
        optimizer.step()


def test_goes_on_as_if_it_had_not_stopped(tmp_path):
    model, optimizer = trained(3)
    save_checkpoint(tmp_path, model, optimizer, State(step=3, identity={"images": 1}))
    other, other_optimizer = trained(0, seed=1)
    state, damaged = load_checkpoint(tmp_path, other, other_optimizer)
    assert (state.identity, state.step, damaged) == ({"images": 1}, 3, ())
    take_steps(model, optimizer, 2)
    take_steps(other, other_optimizer, 2)
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    weight = other.backbone[3].weight
    momentum = other_optimizer.state[weight]["momentum_buffer"]
    assert momentum.is_contiguous(memory_format=torch.channels_last)


def test_only_the_last_checkpoint_is_kept(tmp_path):
    model, optimizer = trained(1)
    for step in (5, 10, 10, 200):
        save_checkpoint(tmp_path, model, optimizer, state_of(step), keep=1)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-00000200"]
    assert read_state(tmp_path).step == 200


def test_a_half_written_checkpoint_is_not_there(tmp_path):
    model, optimizer = trained(1)
    save_checkpoint(tmp_path, model, optimizer, state_of(5))
    (tmp_path / "checkpoint-00000009.cbd_fast-partial").mkdir()
    assert read_state(tmp_path).step == 5


def test_nothing_to_load(tmp_path):
    model, optimizer = trained(0)
    assert load_checkpoint(tmp_path, model, optimizer) is None
    assert read_state(tmp_path) is None


def test_weights_that_cannot_be_used_are_refused(tmp_path):
    model, _ = trained(0)
    path = tmp_path / "model.safetensors"
    with pytest.raises(InputError, match="not the weights"):
        load_weights(path, model)
    path.write_bytes(b"damaged")
    with pytest.raises(InputError, match="damaged"):
        load_weights(path, model)
    save_weights(path, build_model("small_convnet", 7))
    with pytest.raises(InputError, match="not the weights of this model"):
        load_weights(path, model)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("content", [b"", b'{"step": 1', b"x" * 1000])
def test_a_damaged_checkpoint_is_refused_with_the_way_out(tmp_path, name, content):
    model, optimizer = trained(1)
    save_checkpoint(tmp_path, model, optimizer, state_of(5))
    path = tmp_path / "checkpoint-00000005" / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"{path}: damaged .*; remove its folder to train from there again"):
        load_checkpoint(tmp_path, model, optimizer)


def test_momenta_of_another_model_are_refused(tmp_path):
    model, optimizer = trained(1)
    save_checkpoint(tmp_path, model, optimizer, state_of(5))
    path = tmp_path / "checkpoint-00000005" / "optimizer.safetensors"
    momenta = load_file(path)
    del momenta["weight"]
    save_file(momenta, path)
    with pytest.raises(InputError, match=r"optimizer\.safetensors: not the momenta of this model"):
        load_checkpoint(tmp_path, model, optimizer)


def flip(path, position=-3):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


PARTS = ["model.safetensors", "optimizer.safetensors", "state.json"]


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("position", [3, 300, -3])
def test_a_flipped_bit_in_the_newest_falls_back_to_the_one_before(tmp_path, name, position):
    model, optimizer = trained(1)
    save_checkpoint(tmp_path, model, optimizer, state_of(5))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    take_steps(model, optimizer, 1)
    save_checkpoint(tmp_path, model, optimizer, state_of(10))
    flip(tmp_path / "checkpoint-00000010" / name, position)
    other, other_optimizer = trained(0, seed=1)
    state, damaged = load_checkpoint(tmp_path, other, other_optimizer)
    assert state.step == 5
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    assert len(damaged) == 1
    assert f"checkpoint-00000010/{name}: damaged" in damaged[0]
    # the step is done again, and then the damaged one is gone
    save_checkpoint(tmp_path, model, optimizer, state_of(10))
    assert load_checkpoint(tmp_path, other, other_optimizer).damaged == ()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-00000005", "checkpoint-00000010"]


def test_where_all_are_damaged_each_is_named_with_the_way_out(tmp_path):
    model, optimizer = trained(1)
    for step in (5, 10):
        save_checkpoint(tmp_path, model, optimizer, state_of(step))
        flip(tmp_path / f"checkpoint-{step:08d}" / "model.safetensors")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError, match=r"0010/model.*damaged.*0005/model.*damaged.*remove these folders to train"):
        load_checkpoint(tmp_path, model, optimizer)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for step in (5, 10):
        flip(tmp_path / f"checkpoint-{step:08d}" / "state.json")
    with pytest.raises(InputError, match=r"0010/state.*0005/state.*remove these folders to train from the start again"):
        read_state(tmp_path)


def test_as_many_are_kept_as_is_set_and_none_of_an_abandoned_future(tmp_path):
    model, optimizer = trained(1)
    for step in (5, 10, 15, 20):
        save_checkpoint(tmp_path, model, optimizer, state_of(step), keep=3)
    assert [path.name[-2:] for path in checkpoints(tmp_path)] == ["10", "15", "20"]
    flip(tmp_path / "checkpoint-00000020" / "state.json")
    flip(tmp_path / "checkpoint-00000015" / "state.json")
    save_checkpoint(tmp_path, model, optimizer, state_of(12), keep=3)  # as a signal has it
    assert [path.name[-2:] for path in checkpoints(tmp_path)] == ["10", "12"]


def test_folders_of_other_names_and_copies_are_neither_read_nor_removed(tmp_path):
    model, optimizer = trained(1)
    save_checkpoint(tmp_path, model, optimizer, state_of(5))
    ours = tmp_path / "checkpoint-00000005"
    theirs = ["checkpoint-old", "checkpoint-1.bak", "checkpoint-000005", "checkpoint-00000099", "xcheckpoint-00000005"]
    for name in theirs:
        shutil.copytree(ours, tmp_path / name)
    (tmp_path / "checkpoint-00000007").mkdir()  # without a state
    (tmp_path / "checkpoint-00000008").symlink_to(ours)
    (ours / "notes.txt").write_text("mine")
    assert checkpoints(tmp_path) == [ours]
    assert load_checkpoint(tmp_path, model, optimizer).state.step == 5
    for step in (10, 20):
        save_checkpoint(tmp_path, model, optimizer, state_of(step), keep=1)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-00000020"]
    assert all((tmp_path / name / "model.safetensors").is_file() for name in theirs)
    assert [path.name for path in ours.iterdir()] == ["notes.txt"]
    assert (tmp_path / "checkpoint-00000007").is_dir()
    (tmp_path / "checkpoint-00000030").mkdir()
    (tmp_path / "checkpoint-00000030" / "notes.txt").write_text("mine")
    save_checkpoint(tmp_path, model, optimizer, state_of(30))
    assert (tmp_path / "checkpoint-00000030.moved-1" / "notes.txt").read_text() == "mine"
    assert read_state(tmp_path).step == 30


@pytest.mark.parametrize("missing", PARTS)
def test_a_part_that_is_missing_falls_back_to_the_one_before(tmp_path, missing):
    model, optimizer = trained(1)
    for step in (5, 10):
        save_checkpoint(tmp_path, model, optimizer, state_of(step))
    (tmp_path / "checkpoint-00000010" / missing).unlink()
    state, damaged = load_checkpoint(tmp_path, model, optimizer)
    assert state.step == 5
    assert f"checkpoint-00000010/{missing}: " in damaged[0]
    save_checkpoint(tmp_path, model, optimizer, state_of(10))
    assert load_checkpoint(tmp_path, model, optimizer).state.step == 10


def test_what_is_not_finite_replaces_nothing(tmp_path):
    model, optimizer = trained(1)
    save_checkpoint(tmp_path, model, optimizer, state_of(5))
    with torch.no_grad():
        next(model.buffers())[0] = float("inf")
    with pytest.raises(RunError, match=r"not written, as .*running_mean would not be finite"):
        save_checkpoint(tmp_path, model, optimizer, state_of(10), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-00000005"]


def test_the_same_step_again_takes_the_newer_state(tmp_path):
    model, optimizer = trained(1)
    save_checkpoint(tmp_path, model, optimizer, state_of(5))
    written = (tmp_path / "checkpoint-00000005" / "model.safetensors").stat().st_mtime_ns
    save_checkpoint(tmp_path, model, optimizer, state_of(5).model_copy(update={"evaluated_step": 5}))
    assert load_checkpoint(tmp_path, model, optimizer).state.evaluated_step == 5
    assert (tmp_path / "checkpoint-00000005" / "model.safetensors").stat().st_mtime_ns == written


@pytest.mark.parametrize(
    "change",
    [
        {"step": "five"},
        {"step": 2**70},
        {"step": -1},
        {"step": None},
        {"identity": 3},
        {"seconds": "long"},
        {"scaler": [1]},
        {"best": {"step": 5}, "best_file": {"num_bytes": 1}},
        {"files": {"model.safetensors": {"num_bytes": -1, "sha256": "0"}}},
        {"meter": {"step": 1}},
        {"epoch": 3},
    ],
)
def test_states_of_other_types_are_refused_in_one_line(tmp_path, change):
    model, optimizer = trained(1)
    save_checkpoint(tmp_path, model, optimizer, state_of(5))
    path = tmp_path / "checkpoint-00000005" / "state.json"
    path.write_text(json.dumps(read_object(path, "") | change))
    if change in ({"step": 2**70}, {"step": -1}):
        assert checkpoints(tmp_path) == []  # the name is of another step
        return
    with pytest.raises(InputError, match=r"state\.json: damaged .*; remove its folder to train from there again"):
        load_checkpoint(tmp_path, model, optimizer)


def test_a_state_of_version_0_1_is_refused_as_such(tmp_path):
    (tmp_path / "checkpoint-00000005").mkdir()
    (tmp_path / "checkpoint-00000005" / "state.json").write_text('{"step": 5, "identity": {"seed": 1}, "sampler": 1}')
    with pytest.raises(InputError, match=r"was written by cbd_fast 0\.1"):
        read_state(tmp_path)


def test_a_full_disk_is_said_and_the_checkpoint_before_stays(tmp_path):
    model, optimizer = trained(1)
    save_checkpoint(tmp_path, model, optimizer, state_of(5))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # files of more cannot be written
    try:
        with pytest.raises(OSError, match=r"File too large: .*model\.safetensors"):
            save_checkpoint(tmp_path, model, optimizer, state_of(10), keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-00000005"]
    assert load_checkpoint(tmp_path, model, optimizer).damaged == ()


@pytest.mark.parametrize("kills_at", ["publish", "rmtree", "unlink"])
def test_a_kill_while_an_old_one_is_removed_leaves_nothing_in_the_end(tmp_path, monkeypatch, kills_at):
    model, optimizer = trained(1)
    save_checkpoint(tmp_path, model, optimizer, state_of(5))
    if kills_at == "unlink":  # where somebody else has put something there
        (tmp_path / "checkpoint-00000005" / "notes.txt").write_text("mine")

    def kill(*_, **__):
        raise KeyboardInterrupt

    place = {"publish": checkpoint, "rmtree": shutil, "unlink": Path}[kills_at]
    with monkeypatch.context() as patch:
        patch.setattr(place, kills_at, kill)
        with pytest.raises(KeyboardInterrupt):
            remove_checkpoints(checkpoints(tmp_path))
    save_checkpoint(tmp_path, model, optimizer, state_of(10), keep=1)
    left = {"unlink": ["checkpoint-00000005"]}.get(kills_at, [])
    assert sorted(path.name for path in tmp_path.iterdir()) == [*left, "checkpoint-00000010"]
