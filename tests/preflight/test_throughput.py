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
