import os
import threading

import torch

from cbd_fast.loading.threads import num_cores, thread_pool


def test_each_thread_computes_on_one_core_and_the_others_as_before():
    before = torch.get_num_threads()
    with thread_pool(3) as pool:
        together = threading.Barrier(3)

        def look(_):
            together.wait()
            return torch.get_num_threads(), threading.get_ident()

        seen = list(pool.map(look, range(3)))
    assert [num_threads for num_threads, _ in seen] == [1, 1, 1]
    assert len({thread for _, thread in seen}) == 3
    assert torch.get_num_threads() == before


def test_processes_share_the_cores(monkeypatch):
    num_all = len(os.sched_getaffinity(0))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert num_cores() == num_all
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(2 * num_all))
    assert num_cores() == 1
