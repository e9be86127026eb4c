"""This process's place among those of a launcher: the one place that reads it from the environment.

``accelerate launch`` and ``torchrun`` set the same variables; without a launcher a process is the only one.
"""

import os
import sys

from cbd_fast.errors import InputError


def env_rank() -> int:
    """Number of this process among all of the run, from 0."""
    return int(os.environ.get("RANK", "0"))


def env_local_rank() -> int:
    """Number of this process among those of this machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def env_world_size() -> int:
    """Processes of the run, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def env_local_world_size() -> int:
    """Processes of the run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def place_among_processes(rank: int | None = None, world_size: int | None = None) -> tuple[int, int]:
    """Rank and number of processes: as given, as torch.distributed says, or as its launcher's environment says.

    Raises:
        InputError: the two do not go together.
    """
    distributed = sys.modules.get("torch.distributed")  # where nobody has imported it, nobody has joined processes
    is_joined = distributed is not None and distributed.is_available() and distributed.is_initialized()
    if world_size is None:
        world_size = distributed.get_world_size() if distributed and is_joined else env_world_size()
    if rank is None and world_size > 1:
        if distributed and is_joined:
            rank = distributed.get_rank()
        elif "RANK" in os.environ:
            rank = env_rank()
        else:
            raise InputError(f"world_size={world_size}: which of them this process is, is not known; give rank too")
    rank = rank or 0
    if not 0 <= rank < world_size:
        raise InputError(f"rank={rank}: must be 0 or more and below world_size={world_size}")
    return rank, world_size
