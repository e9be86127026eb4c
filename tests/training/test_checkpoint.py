import pytest
import torch
from safetensors.torch import load_file, save_file

from cbd_fast.config.sections import Optimization
from cbd_fast.errors import InputError
from cbd_fast.training.checkpoint import (
    checkpoints,
    load_checkpoint,
    load_weights,
    read_result,
    read_state,
    save_checkpoint,
    save_finished,
)
from cbd_fast.training.models import build_model
from cbd_fast.training.optim import make_optimizer


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
    save_checkpoint(tmp_path, 3, model, optimizer, {"identity": {"a": 1}})
    other, other_optimizer = trained(0, seed=1)
    state = load_checkpoint(tmp_path, other, other_optimizer)
    assert state == {"identity": {"a": 1}, "step": 3}
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
        save_checkpoint(tmp_path, step, model, optimizer, {})
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-00000200"]
    assert read_state(tmp_path)["step"] == 200


def test_a_half_written_checkpoint_is_not_there(tmp_path):
    model, optimizer = trained(1)
    save_checkpoint(tmp_path, 5, model, optimizer, {})
    (tmp_path / "checkpoint-00000009.cbd_fast-partial").mkdir()
    assert read_state(tmp_path)["step"] == 5


def test_nothing_to_load(tmp_path):
    model, optimizer = trained(0)
    assert load_checkpoint(tmp_path, model, optimizer) is None
    assert read_result(tmp_path) is None


def test_a_finished_model_has_weights_result_and_no_checkpoints(tmp_path):
    model, optimizer = trained(2)
    save_checkpoint(tmp_path, 2, model, optimizer, {})
    save_finished(tmp_path, model, {"metrics": {"top1": 50.0}})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "result.json"]
    assert read_result(tmp_path) == {"metrics": {"top1": 50.0}}
    other, _ = trained(0, seed=1)
    load_weights(tmp_path / "model.safetensors", other)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_weights_that_cannot_be_used_are_refused(tmp_path):
    model, _ = trained(0)
    path = tmp_path / "model.safetensors"
    with pytest.raises(InputError, match="not the weights"):
        load_weights(path, model)
    path.write_bytes(b"damaged")
    with pytest.raises(InputError, match="damaged"):
        load_weights(path, model)
    save_finished(tmp_path, build_model("small_convnet", 7), {})
    with pytest.raises(InputError, match="not the weights of this model"):
        load_weights(path, model)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("content", [b"", b'{"step": 1', b"x" * 1000])
def test_a_damaged_checkpoint_is_refused_with_the_way_out(tmp_path, name, content):
    model, optimizer = trained(1)
    save_checkpoint(tmp_path, 5, model, optimizer, {})
    path = tmp_path / "checkpoint-00000005" / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"{path}: damaged .*; remove its folder to train from there again"):
        load_checkpoint(tmp_path, model, optimizer)


def test_momenta_of_another_model_are_refused(tmp_path):
    model, optimizer = trained(1)
    save_checkpoint(tmp_path, 5, model, optimizer, {})
    path = tmp_path / "checkpoint-00000005" / "optimizer.safetensors"
    momenta = load_file(path)
    del momenta["weight"]
    save_file(momenta, path)
    with pytest.raises(InputError, match=r"optimizer\.safetensors: not the momenta of this model"):
        load_checkpoint(tmp_path, model, optimizer)


def test_a_damaged_result_is_refused(tmp_path):
    save_finished(tmp_path, trained(0)[0], {})
    (tmp_path / "result.json").write_text('{"metrics"')
    with pytest.raises(InputError, match=r"result\.json: damaged"):
        read_result(tmp_path)
