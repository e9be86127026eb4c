"""The training loop in this process; whole commands are in test_end_to_end.py.

``python -m tests.test_engine`` writes the recorded losses anew, after a change that is meant to change them.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import nn
from torch.profiler import ProfilerActivity, profile

from cbd_fast.config.schema import Config
from cbd_fast.errors import RunError
from cbd_fast.training import plan
from cbd_fast.training import trainer as command
from cbd_fast.training.models import CosineModel
from cbd_fast.training.run_dir import RunDir
from cbd_fast.ui.dashboard import NullDashboard

RECORDED = Path(__file__).with_name("recorded_losses.json")
LOSSES = ("loss", "classification_loss", "distillation_loss")


def config_of(output, shards, *, runtime=None, optimization=None, **settings) -> Config:
    return Config.model_validate(
        {
            "output": str(output),
            "data": {
                "shards": str(shards),
                "num_classes": 10,
                "image_size": 32,
                "augmentation": {"crop": "pad_and_crop", "flip": False},
            },
            "model": {"backbone": "small_convnet"},
            "optimization": {"steps": 20, "global_batch": 16, "base_learning_rate": 0.05} | (optimization or {}),
            "stage_one": {"teachers": [{"seed": 1, "color_jitter": 0.5}]},
            "stage_two": {"color_jitter": 0.5},
            "runtime": {"log_every": 1, "num_threads": 2} | (runtime or {}),
        }
        | settings
    )


def small_model(backbone, num_classes, target_dim=None):
    """Without batch-norm: its statistics are of each part of a batch, and it amplifies rounding from step to step."""
    layers = nn.Sequential(nn.Conv2d(3, 8, 5, 4), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 7 * 7, 16))
    return CosineModel(layers, 16, num_classes)


def run(config: Config, dashboard=None) -> list[dict]:
    """Runs a config as the command does and returns its metrics."""
    shards = command.open_shards(config)
    specs = command.models_to_train(command.plan_models(config, shards), config.stages)
    run_dir = RunDir(Path(config.output), is_main=True)
    run_dir.start(config)
    accelerator = command.make_accelerator(config)
    with command.open_context(config, shards, accelerator, run_dir, dashboard or NullDashboard()) as context:
        command.run(specs, context)
    AcceleratorState._reset_state(reset_partial_state=True)
    return [json.loads(line) for line in (Path(config.output) / "metrics.jsonl").read_text().splitlines()]


def losses_of(metrics) -> dict[str, dict[str, float]]:
    """The losses of every logged step, by model and step."""
    return {
        f"{record['model']} {record['step']}": {name: record[name] for name in LOSSES if name in record}
        for record in metrics
        if "loss" in record
    }


def assert_close(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for step, losses in expected.items():
        assert found[step] == pytest.approx(losses, rel=tolerance, abs=tolerance), step


def weights_of(config: Config, model="student"):
    return load_file(Path(config.output) / model / "model.safetensors")


class StopsAt(NullDashboard):
    """Interrupts a run, as a person does with Ctrl-C."""

    def __init__(self, model, step):
        self.at = (model, step)

    def log(self, record):
        if (record["model"], record["step"]) == self.at:
            raise KeyboardInterrupt


def test_losses_are_the_recorded_ones(digits_shards, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "build_model", small_model)
    recorded = json.loads(RECORDED.read_text())
    assert len(recorded) == 40
    # the tolerance is for other processors, whose kernels add up in other orders
    assert_close(losses_of(run(config_of(tmp_path, digits_shards))), recorded, 1e-3)


def test_losses_are_the_sum_of_their_parts(digits_shards, tmp_path):
    metrics = run(config_of(tmp_path, digits_shards, optimization={"steps": 2}))
    student = next(record for record in metrics if record["model"] == "student" and "loss" in record)
    expected = 0.6 * student["classification_loss"] + 0.4 * 100 * student["distillation_loss"]
    assert student["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("where", [("teacher-1", 8), ("student", 13)])
def test_an_interrupted_run_ends_like_an_undisturbed_one(digits_shards, tmp_path, where):
    runtime = {"checkpoint_every": 5, "record_batches": True}
    whole = config_of(tmp_path / "whole", digits_shards, runtime=runtime)
    stopped = config_of(tmp_path / "stopped", digits_shards, runtime=runtime)
    expected = run(whole)
    with pytest.raises(KeyboardInterrupt):
        run(stopped, StopsAt(*where))
    AcceleratorState._reset_state(reset_partial_state=True)
    found = run(stopped)
    assert losses_of(found) == losses_of(expected)
    for name, value in weights_of(whole).items():
        assert torch.equal(value, weights_of(stopped)[name]), name
    # steps since the last checkpoint were read twice, and alike
    batches = [set((Path(c.output) / "batches.rank-0.jsonl").read_text().splitlines()) for c in (whole, stopped)]
    assert batches[0] == batches[1]


def test_finished_models_are_not_trained_again(digits_shards, tmp_path):
    config = config_of(tmp_path, digits_shards, optimization={"steps": 3})
    first = run(config)
    weights = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert run(config) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == weights
    shutil.rmtree(tmp_path / "student")
    again = run(config)
    assert losses_of(again) == losses_of(first)
    teacher = tmp_path / "teacher-1" / "model.safetensors"
    assert teacher.stat().st_mtime_ns == weights[teacher]


def test_evaluations_in_between(digits_shards, tmp_path):
    metrics = run(config_of(tmp_path, digits_shards, stages="teachers", runtime={"evaluate_every": 8}))
    assert [record["step"] for record in metrics if "per_class_mean" in record] == [8, 16, 20]


def test_accumulation_changes_nothing(digits_shards, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "build_model", small_model)
    weights = []
    for parts in (1, 2, 4):
        config = config_of(tmp_path / str(parts), digits_shards, optimization={"accumulation": parts, "steps": 8})
        run(config)
        weights.append(weights_of(config))
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(weights[2][name], value, atol=1e-5, rtol=1e-4)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_steps(digits_shards, tmp_path, monkeypatch):
    class Diverges(CosineModel):
        calls = 0

        def forward(self, images):
            output = super().forward(images)
            Diverges.calls += 1
            return output._replace(logits=output.logits * (float("nan") if Diverges.calls > 6 else 1))

    monkeypatch.setattr(plan, "build_model", lambda *_: Diverges(small_model("", 10).backbone, 16, 10))
    with pytest.raises(RunError, match="teacher-1: the loss is not finite somewhere in steps 6 to 10"):
        run(config_of(tmp_path, digits_shards, runtime={"log_every": 5}))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_as_accurate(digits_shards, tmp_path, precision):
    """Two seeds of one precision differ by up to 7 points here, two precisions of one seed by 3."""
    metrics = {}
    for name in ("no", precision):
        optimization = {"steps": 60, "global_batch": 32, "base_learning_rate": 0.4}
        config = config_of(tmp_path / name, digits_shards, optimization=optimization, mixed_precision=name)
        augmentation = config.data.augmentation.model_copy(update={"padding": 2})
        data = config.data.model_copy(update={"image_size": 16, "augmentation": augmentation})
        metrics[name] = run(config.model_copy(update={"data": data}))
    assert losses_of(metrics[precision]) != losses_of(metrics["no"])
    plain, half = (
        [record["per_class_mean"] for record in run if "per_class_mean" in record] for run in metrics.values()
    )
    assert plain[1] > plain[0] + 10 > 60  # the student learns from the teacher, which has learned
    assert half == pytest.approx(plain, abs=7)


def test_fp16_goes_on_with_its_loss_scale(digits_shards, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "build_model", small_model)
    runtime = {"checkpoint_every": 5}
    whole, stopped = (
        config_of(tmp_path / name, digits_shards, mixed_precision="fp16", runtime=runtime) for name in ("a", "b")
    )
    expected = run(whole)
    with pytest.raises(KeyboardInterrupt):
        run(stopped, StopsAt("student", 8))
    AcceleratorState._reset_state(reset_partial_state=True)
    assert losses_of(run(stopped)) == losses_of(expected)


def test_nothing_is_waited_for_between_two_lines_of_the_log(digits_shards, tmp_path):
    """A value that Python asks for makes it wait for a GPU; only logging and evaluation may, at the end here."""

    def num_waits(num_steps: int) -> int:
        runtime = {"log_every": 100}
        config = config_of(tmp_path / str(num_steps), digits_shards, optimization={"steps": num_steps}, runtime=runtime)
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            run(config)
        counts = {event.key: event.count for event in profiled.key_averages()}
        assert counts["aten::convolution_backward"] >= num_steps
        return counts.get("aten::_local_scalar_dense", 0)

    assert num_waits(3) == num_waits(9) > 0


def test_compiled_models_learn_the_same(digits_shards, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "build_model", small_model)
    plain = run(config_of(tmp_path / "plain", digits_shards, optimization={"steps": 3}))
    compiled = run(config_of(tmp_path / "fast", digits_shards, optimization={"steps": 3}, runtime={"compile": True}))
    assert_close(losses_of(compiled), losses_of(plain), 1e-3)


if __name__ == "__main__":
    import tempfile

    from cbd_fast.shards.sources.archives import digits_source
    from cbd_fast.shards.writing.dataset_writer import write_dataset
    from cbd_fast.shards.writing.options import WriteOptions

    plan.build_model = small_model
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(digits_source(0), Path(folder, "shards"), WriteOptions(), num_workers=2)
        recorded = losses_of(run(config_of(Path(folder, "run"), Path(folder, "shards"))))
    RECORDED.write_text(json.dumps(recorded, indent=1) + "\n")
