"""The training loop in this process; whole commands are in tests/end_to_end.

``python -m tests.training.test_engine`` writes the recorded losses anew, after a change that is meant to change them.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.profiler import ProfilerActivity, profile

from cbd_fast.config.schema import Config
from cbd_fast.errors import RunError
from cbd_fast.registry import BACKBONES
from cbd_fast.training import plan
from cbd_fast.training.models import CosineModel
from cbd_fast.ui.dashboard import NullDashboard
from tests.helpers import digits_config, registered, run_in_process

pytestmark = pytest.mark.slow

RECORDED = Path(__file__).with_name("recorded_losses.json")
LOSSES = ("loss", "classification_loss", "distillation_loss")


def small_backbone():
    """Without batch-norm: its statistics are of each part of a batch, and it amplifies rounding from step to step."""
    return nn.Sequential(nn.Conv2d(3, 8, 5, 4), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 7 * 7, 16)), 16


SMALL = {"backbone": "without_batch_norm"}


@pytest.fixture(autouse=True)
def _small_backbone_is_registered():
    with registered(BACKBONES, "without_batch_norm", small_backbone):
        yield


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


def test_losses_are_the_recorded_ones(digits_shards, tmp_path):
    recorded = json.loads(RECORDED.read_text())
    assert len(recorded) == 40
    # the tolerance is for other processors, whose kernels add up in other orders
    assert_close(losses_of(run_in_process(digits_config(tmp_path, digits_shards, model=SMALL))), recorded, 1e-3)


def test_losses_are_the_sum_of_their_parts(digits_shards, tmp_path):
    metrics = run_in_process(digits_config(tmp_path, digits_shards, optimization={"steps": 2}))
    student = next(record for record in metrics if record["model"] == "student" and "loss" in record)
    expected = 0.6 * student["classification_loss"] + 0.4 * 100 * student["distillation_loss"]
    assert student["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("where", [("teacher-1", 8), ("student", 13)])
def test_an_interrupted_run_ends_like_an_undisturbed_one(digits_shards, tmp_path, where):
    runtime = {"checkpoint_every": 5, "record_batches": True}
    whole = digits_config(tmp_path / "whole", digits_shards, runtime=runtime)
    stopped = digits_config(tmp_path / "stopped", digits_shards, runtime=runtime)
    expected = run_in_process(whole)
    with pytest.raises(KeyboardInterrupt):
        run_in_process(stopped, StopsAt(*where))
    found = run_in_process(stopped)
    assert losses_of(found) == losses_of(expected)
    for name, value in weights_of(whole).items():
        assert torch.equal(value, weights_of(stopped)[name]), name
    # steps since the last checkpoint were read twice, and alike
    batches = [set((Path(c.output) / "batches.rank-0.jsonl").read_text().splitlines()) for c in (whole, stopped)]
    assert batches[0] == batches[1]


def test_finished_models_are_not_trained_again(digits_shards, tmp_path):
    config = digits_config(tmp_path, digits_shards, optimization={"steps": 3})
    first = run_in_process(config)
    weights = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert run_in_process(config) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == weights
    shutil.rmtree(tmp_path / "student")
    again = run_in_process(config)
    assert losses_of(again) == losses_of(first)
    teacher = tmp_path / "teacher-1" / "model.safetensors"
    assert teacher.stat().st_mtime_ns == weights[teacher]


def test_evaluations_in_between(digits_shards, tmp_path):
    metrics = run_in_process(digits_config(tmp_path, digits_shards, stages="teachers", runtime={"evaluate_every": 8}))
    assert [record["step"] for record in metrics if "per_class_mean" in record] == [8, 16, 20]


def test_accumulation_changes_nothing(digits_shards, tmp_path):
    weights = []
    for parts in (1, 2, 4):
        config = digits_config(
            tmp_path / str(parts), digits_shards, model=SMALL, optimization={"accumulation": parts, "steps": 8}
        )
        run_in_process(config)
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

    monkeypatch.setattr(plan, "build_model", lambda *_: Diverges(*small_backbone(), 10))
    with pytest.raises(RunError, match="teacher-1: the loss is not finite somewhere in steps 6 to 10"):
        run_in_process(digits_config(tmp_path, digits_shards, runtime={"log_every": 5, "checkpoint_every": 5}))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_as_accurate(digits_shards, tmp_path, precision):
    """Two seeds of one precision differ by up to 7 points here, two precisions of one seed by 3."""
    metrics = {}
    for name in ("no", precision):
        optimization = {"steps": 60, "global_batch": 32, "base_learning_rate": 0.4}
        config = digits_config(tmp_path / name, digits_shards, optimization=optimization, mixed_precision=name)
        augmentation = config.data.augmentation.model_copy(update={"padding": 2})
        data = config.data.model_copy(update={"image_size": 16, "augmentation": augmentation})
        metrics[name] = run_in_process(config.model_copy(update={"data": data}))
    assert losses_of(metrics[precision]) != losses_of(metrics["no"])
    plain, half = (
        [record["per_class_mean"] for record in records if "per_class_mean" in record] for records in metrics.values()
    )
    assert plain[1] > plain[0] + 10 > 60  # the student learns from the teacher, which has learned
    assert half == pytest.approx(plain, abs=7)


def test_fp16_goes_on_with_its_loss_scale(digits_shards, tmp_path):
    runtime = {"checkpoint_every": 5}
    whole, stopped = (
        digits_config(tmp_path / name, digits_shards, model=SMALL, mixed_precision="fp16", runtime=runtime)
        for name in ("a", "b")
    )
    expected = run_in_process(whole)
    with pytest.raises(KeyboardInterrupt):
        run_in_process(stopped, StopsAt("student", 8))
    assert losses_of(run_in_process(stopped)) == losses_of(expected)


def test_nothing_is_waited_for_between_two_lines_of_the_log(digits_shards, tmp_path):
    """A value that Python asks for makes it wait for a GPU; only logging and evaluation may, at the end here."""

    def num_waits(num_steps: int) -> int:
        runtime = {"log_every": 100, "checkpoint_every": 100}
        config = digits_config(
            tmp_path / str(num_steps), digits_shards, optimization={"steps": num_steps}, runtime=runtime
        )
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            run_in_process(config)
        counts = {event.key: event.count for event in profiled.key_averages()}
        assert counts["aten::convolution_backward"] >= num_steps
        return counts.get("aten::_local_scalar_dense", 0)

    assert num_waits(3) == num_waits(9) > 0


def test_compiled_models_learn_the_same(digits_shards, tmp_path):
    short = {"model": SMALL, "optimization": {"steps": 3}}
    plain = run_in_process(digits_config(tmp_path / "plain", digits_shards, **short))
    compiled = run_in_process(digits_config(tmp_path / "fast", digits_shards, **short, runtime={"compile": True}))
    assert_close(losses_of(compiled), losses_of(plain), 1e-3)


if __name__ == "__main__":
    import tempfile

    from cbd_fast.shards.sources.archives import digits_source
    from cbd_fast.shards.writing.dataset_writer import write_dataset
    from cbd_fast.shards.writing.options import WriteOptions

    with tempfile.TemporaryDirectory() as folder, registered(BACKBONES, "without_batch_norm", small_backbone):
        write_dataset(digits_source(0), Path(folder, "shards"), WriteOptions(), num_workers=2)
        recorded = losses_of(run_in_process(digits_config(Path(folder, "run"), Path(folder, "shards"), model=SMALL)))
    RECORDED.write_text(json.dumps(recorded, indent=1) + "\n")
