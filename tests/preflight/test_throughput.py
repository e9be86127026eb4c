from types import SimpleNamespace

import pytest
import torch

from cbd_fast.preflight import throughput


def test_the_rate_is_of_all_batches_after_the_first():
    """16 images a batch, learned in two parts; the clock is ours."""
    learned = []

    def update(batch, learning_rate):
        for _ in range(2):
            learned.append(len(batch) // 2)
            yield

    train_step = SimpleNamespace(
        update=update,
        optimizer=SimpleNamespace(param_groups=[{"lr": 0.1}]),
        accelerator=SimpleNamespace(num_processes=1, device=torch.device("cpu")),
    )
    times = iter([0.0, 1.0, 2.0, 3.0, 4.0, 4.0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(throughput.time, "perf_counter", lambda: next(times))
        rate = throughput.training_rate(train_step, iter([range(16)] * 100), 3.5, num_warm_up=2)
    assert learned == [8] * 2 * (2 + 4)
    assert rate == 4 * 16 / 4


def test_finished_teachers_are_read_and_others_are_untrained(tmp_path, monkeypatch):
    """A teacher of another run may have another backbone, and so another speed."""
    monkeypatch.setattr(throughput, "read_model", lambda folder: (f"read from {folder.name}", None))
    monkeypatch.setattr(throughput, "build_model", lambda backbone, num_classes: f"fresh {backbone} of {num_classes}")
    monkeypatch.setattr(throughput, "join_setup", lambda spec, config, teachers: teachers)
    config = SimpleNamespace(model=SimpleNamespace(backbone="small_convnet"), data=SimpleNamespace(num_classes=10))
    run = tmp_path / "run"
    for name in ("finished", "interrupted"):  # before its result was written
        (run / name).mkdir(parents=True)
        (run / name / "config.json").write_text("{}")
    (run / "finished" / "result.json").write_text("{}")
    folders = (run / "finished", run / "interrupted", run / "to_do", tmp_path / "other_run" / "teacher")
    spec = SimpleNamespace(folder=run / "student", teachers=folders)
    fresh = "fresh small_convnet of 10"
    assert throughput.fresh_setup(spec, config) == ["read from finished", fresh, fresh, "read from teacher"]
