import os
import threading

import pytest
import torch

from cbd_fast.errors import InputError
from cbd_fast.processes import place_among_processes
from cbd_fast.resources import num_cores
from cbd_fast.system import thread_pool


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


def test_place_is_given_or_the_launchers(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert place_among_processes() == (0, 1)
    assert place_among_processes(2, 4) == (2, 4)
    with pytest.raises(InputError, match="world_size=4: which of them this process is"):
        place_among_processes(world_size=4)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert place_among_processes() == (1, 3)
    assert place_among_processes(world_size=1) == (0, 1)
    with pytest.raises(InputError, match="rank=5: must be 0 or more and below world_size=3"):
        place_among_processes(rank=5)
