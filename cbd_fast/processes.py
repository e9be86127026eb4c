"""This process's place among those of a launcher: the one place that reads it from the environment.

``accelerate launch`` and ``torchrun`` set the same variables; without a launcher a process is the only one.
"""

import os
import sys
from typing import Any

from cbd_fast.errors import InputError

# number of processes, and number of this one, of those who start several without telling torch.distributed
_STARTERS = {
    "srun": ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    "mpirun": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    "mpiexec": ("PMI_SIZE", "PMI_RANK"),
    "mpirun_rsh": ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
}
PARENT = os.getppid()  # before anything that takes long to import, while which a launcher may end


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


def env_meeting_point() -> tuple[str, int] | None:
    """Host and port where the processes of the run meet; None where they are not told."""
    port = os.environ.get("MASTER_PORT", "")
    return (os.environ["MASTER_ADDR"], int(port)) if "MASTER_ADDR" in os.environ and port.isdecimal() else None


def has_agent() -> bool:
    """Whether a launcher watches this process, ends it when another one has failed, and has the processes' store."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def is_launched() -> bool:
    """Whether a launcher has started this process, or says so the environment that it has left behind."""
    return "TORCHELASTIC_RUN_ID" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ


def place_among_processes(rank: int | None = None, world_size: int | None = None) -> tuple[int, int]:
    """Rank and number of processes: as given, as torch.distributed says, or as its launcher's environment says.

    Raises:
        InputError: the two do not go together.
    """
    distributed = joined_processes()
    if world_size is None:
        world_size = distributed.get_world_size() if distributed else env_world_size()
    if rank is None and world_size > 1:
        if distributed:
            rank = distributed.get_rank()
        elif "RANK" in os.environ:
            rank = env_rank()
        else:
            raise InputError(f"world_size={world_size}: which of them this process is, is not known; give rank too")
    rank = rank or 0
    if not 0 <= rank < world_size:
        raise InputError(f"rank={rank}: must be 0 or more and below world_size={world_size}")
    return rank, world_size


def joined_processes() -> Any:
    """The module ``torch.distributed`` where processes are joined, else None; nobody has to wait for its import."""
    distributed = sys.modules.get("torch.distributed")
    return distributed if distributed and distributed.is_available() and distributed.is_initialized() else None


def check_launcher() -> None:
    """Refuses to be one of several processes that know nothing of each other, each of which would train alone.

    ``WORLD_SIZE=1``, set by hand, says that this is meant.

    Raises:
        InputError: Slurm or MPI has started several, and no launcher has joined them.
    """
    if env_world_size() > 1 or ("WORLD_SIZE" in os.environ and not is_launched()) or joined_processes():
        return
    for starter, (size, _) in _STARTERS.items():
        number = os.environ.get(size, "1")
        if starter == "srun" and size not in os.environ and _is_task_of_slurm():
            size, number = "SLURM_NTASKS", os.environ.get("SLURM_NTASKS", "1")
        if number.isdecimal() and int(number) > 1:
            torchrun = "torchrun --nproc_per_node GPUS -m cbd_fast.train --config FILE"
            several = "torchrun --nnodes NODES --nproc_per_node GPUS --rdzv_backend c10d --rdzv_endpoint HOST:29500"
            raise InputError(
                f"{size}={number}: {starter} has started {number} processes, but each knows only of itself and would "
                f"train alone; on one machine type {torchrun}, on several {starter} with one process for each machine "
                f"and {several} -m cbd_fast.train --config FILE; WORLD_SIZE=1 says that each is to train alone"
            )


def number_among_started() -> int:
    """Number of this process among those that Slurm or MPI has started, from 0."""
    numbers = (os.environ.get(number, "0") for _, number in _STARTERS.values())
    return max(int(number) if number.isdecimal() else 0 for number in numbers)


def _is_task_of_slurm() -> bool:
    """Whether this is one of ``srun``'s processes; a batch script is one process, whatever the number of tasks."""
    in_step = "SLURM_STEP_ID" in os.environ
    return "SLURM_PROCID" in os.environ and (in_step or os.environ.get("ENVIRONMENT") != "BATCH")
