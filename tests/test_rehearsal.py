from types import SimpleNamespace

import pytest
import torch

from cbd_fast.training import rehearsal


def test_the_rate_is_of_all_parts_after_the_first():
    """16 pictures a part; the clock is ours."""
    learned = []
    learner = SimpleNamespace(
        learn=lambda images, labels: learned.append(len(labels)),
        accelerator=SimpleNamespace(num_processes=1, device=torch.device("cpu")),
    )
    times = iter([0.0, 1.0, 2.0, 3.0, 4.0, 4.0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rehearsal.time, "perf_counter", lambda: next(times))
        rate = rehearsal.training_rate(learner, iter([(None, range(16))] * 100), 3.5, num_warm_up=2)
    assert len(learned) == 2 + 4
    assert rate == 4 * 16 / 4
