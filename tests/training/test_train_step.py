from itertools import pairwise

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.profiler import ProfilerActivity, profile

from cbd_fast.config.schema import Config
from cbd_fast.loading.augment import Augmentation
from cbd_fast.training import train_step as train_step_module
from cbd_fast.training.models import build_model
from cbd_fast.training.plan import ModelSpec, join_setup
from cbd_fast.training.train_step import compiler_works, make_train_step, what_is_compiled
from tests.helpers import config_of

CPU = torch.device("cpu")


def config_with(num_teachers=2, **settings) -> Config:
    teachers = [{"seed": seed} for seed in range(num_teachers)]
    data, optimization = {"num_classes": 10}, {"steps": 10, "global_batch": 8}
    settings = {"data": data, "optimization": optimization, "stage_one": {"teachers": teachers}} | settings
    return config_of(**settings)


def train_step_of(config: Config, device="cpu"):
    """Of a student, whose teachers have learned nothing, and the teachers as they were handed over."""
    teachers = [build_model(config.model.backbone, config.data.num_classes) for _ in config.stage_one.teachers]
    spec = ModelSpec(
        name="student",
        stage="student",
        seed=0,
        sampling="class_balanced",
        augmentation=Augmentation(),
        num_steps=10,
        teachers=(None,) * len(teachers),
        class_counts=(1,) * 10,
        folder=None,
        identity={},
    )
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision=config.mixed_precision)
    return make_train_step(join_setup(spec, config, teachers), config, accelerator), teachers


def batch_of(size: int, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(size, 3, 32, 32, generator=generator), torch.arange(size) % 10
    return images.to(device), labels.to(device)


def test_teachers_are_no_part_of_what_learns():
    train_step, teachers = train_step_of(config_with())
    before = [{name: value.clone() for name, value in teacher.state_dict().items()} for teacher in teachers]
    learning = {id(parameter) for group in train_step.optimizer.param_groups for parameter in group["params"]}
    assert learning == {id(parameter) for parameter in train_step.unwrapped_model.parameters()}
    # the wrapped model is what several processes reduce gradients of and what a checkpoint is made from
    assert {id(parameter) for parameter in train_step.model.parameters()} == learning
    optimized = train_step.teachers._module
    for _ in range(2):
        train_step.learn(*batch_of(8))
    for module in (*teachers, optimized):
        assert all(parameter.grad is None and not parameter.requires_grad for parameter in module.parameters())
        assert not any(part.training for part in module.modules())
        assert not learning & {id(parameter) for parameter in module.parameters()}
    for teacher, was in zip(teachers, before, strict=True):
        assert all(torch.equal(value, was[name]) for name, value in teacher.state_dict().items())
    assert all(
        parameter.grad is None for parameter in train_step.unwrapped_model.parameters()
    )  # and were used and given up


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_step_never_waits_and_never_walks_through_the_batch(precision):
    """A value that Python asks for is a wait on a GPU; an operation per image would be a loop over the batch."""
    counts = []
    for size, num_steps in ((8, 2), (8, 5), (16, 5)):
        AcceleratorState._reset_state(reset_partial_state=True)
        train_step, _ = train_step_of(config_with(mixed_precision=precision))
        images, labels = batch_of(size)
        train_step.learn(images, labels)
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            for _ in range(num_steps):
                train_step.learn(images, labels)
        counts.append({event.key: event.count for event in profiled.key_averages()})
        assert counts[-1]["aten::conv2d"] >= num_steps * 3 * 5  # it did see the student and two teachers of five layers
        assert not {"aten::item", "aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero"} & counts[-1].keys()
    operations = [sum(count for name, count in found.items() if name.startswith("aten::")) for found in counts]
    assert operations[1] == operations[2]
    assert operations[0] * 5 == operations[1] * 2


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_step_never_waits_for_the_gpu(precision):
    train_step, _ = train_step_of(config_with(mixed_precision=precision), device="cuda")
    images, labels = batch_of(8, "cuda")
    train_step.learn(images, labels)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            train_step.learn(images, labels)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["auto", "bf16"])
def test_teachers_have_a_precision_of_their_own(precision):
    train_step, _ = train_step_of(config_with(runtime={"teacher_precision": precision}))
    backbone = next(iter(train_step.teachers._module)).backbone
    expected = {"auto": torch.float32, "bf16": torch.bfloat16}[precision]
    assert {parameter.dtype for parameter in backbone.parameters()} == {expected}
    train_step.learn(*batch_of(8))


def test_training_goes_down_the_loss():
    train_step, _ = train_step_of(config_with())
    batch = batch_of(16)
    losses = [train_step.learn(*batch)[0]["loss"].item() for _ in range(10)]
    assert losses[-1] < 0.8 * losses[0]
    assert sum(later < earlier for earlier, later in pairwise(losses)) >= 6


@pytest.mark.parametrize(
    ("precision", "device", "size", "num_steps", "expected"),
    [
        ("no", "cpu", 32, 499, (False, False)),
        ("no", "cpu", 32, 500, (False, True)),
        ("no", "cpu", 32, 2000, (True, True)),
        ("no", "cpu", 224, 10**6, (False, True)),
        ("bf16", "cpu", 32, 10**6, (False, True)),
        ("bf16", "cuda", 224, 2000, (True, True)),
    ],
)
def test_what_is_compiled_by_default(precision, device, size, num_steps, expected, monkeypatch):
    monkeypatch.setattr(train_step_module, "compiler_works", lambda device: True)
    data = {"shards": "", "num_classes": 10, "image_size": size}
    found = what_is_compiled(config_with(mixed_precision=precision, data=data), torch.device(device), num_steps)
    assert found == expected


def test_without_a_compiler_the_run_goes_on(monkeypatch):
    def fails(_):
        raise RuntimeError("No working C++ compiler found in /nowhere/g++\nand more")

    monkeypatch.setattr(torch, "compile", lambda function: fails)
    compiler_works.cache_clear()
    with pytest.warns(UserWarning, match=r"not work here \(No working C\+\+ compiler found in /nowhere/g\+\+\); this"):
        assert what_is_compiled(config_with(), CPU, 10**6) == (False, False)
    assert what_is_compiled(config_with(runtime={"compile": True}), CPU, 1) == (True, True)  # and fails, as told
    compiler_works.cache_clear()


@pytest.mark.parametrize("setting", [True, False])
def test_what_is_compiled_as_told(setting):
    assert what_is_compiled(config_with(runtime={"compile": setting}), CPU, 1) == (setting, setting)


@pytest.mark.parametrize(("setting", "expected"), [(None, True), (False, False)])
def test_only_what_was_asked_for_may_fail_to_compile(setting, expected):
    train_step_of(config_with(runtime={"compile": setting}))
    assert torch._dynamo.config.suppress_errors == expected
