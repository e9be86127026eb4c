import pytest
import torch

from cbd_fast.errors import InputError
from cbd_fast.training.context import make_accelerator
from tests.helpers import config_of


def test_processes_that_accelerate_does_not_know_of_are_refused(monkeypatch):
    """Each of them would train alone, into the same folder."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(InputError, match="2 processes are joined, but Accelerate knows 1"):
        make_accelerator(config_of())


def test_a_process_alone_needs_no_launcher():
    assert make_accelerator(config_of()).num_processes == 1
