"""Cores and memory for this process, within all limits: of the machine, its processes, containers and jobs."""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from cbd_fast.processes import env_local_world_size

CONTROL_GROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")


def num_cores() -> int:
    """Cores for this process: those it may use, shared with the other processes of a launcher on this machine."""
    return max(1, num_cores_of_all() // env_local_world_size())


def num_cores_of_all() -> int:
    """Cores that this process may use, as if it were the only one: by affinity, and by the quotas of containers."""
    return max(1, min([len(os.sched_getaffinity(0)), *map(math.ceil, _core_quotas())]))


def available_bytes() -> int:
    """Memory that can still be had: of the machine, or of the container or job where that has a limit of its own."""
    return min([psutil.virtual_memory().available, *_left_in_control_groups()])


def _core_quotas() -> Iterator[float]:
    """Processor time per time that control groups of this process grant, in cores."""
    for group, is_version_2 in _control_groups("cpu"):
        with suppress(OSError, ValueError):  # no such file, or no limit ("max", -1)
            names = ("cpu.max",) if is_version_2 else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            quota, period = (int(word) for name in names for word in (group / name).read_text().split())
            if quota > 0 and period > 0:
                yield quota / period


def _left_in_control_groups() -> Iterator[int]:
    """Limit less usage of this process's control groups; what can be dropped is no usage."""
    for group, is_version_2 in _control_groups("memory"):
        with suppress(OSError, ValueError):  # no such file, or no limit ("max")
            names = ("max", "current") if is_version_2 else ("limit_in_bytes", "usage_in_bytes")
            limit, usage = (int((group / f"memory.{name}").read_text()) for name in names)
            statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            droppable = int(statistics.get("total_inactive_file", statistics.get("inactive_file", "0")))
            yield max(0, limit - usage + droppable)


def _control_groups(controller: str) -> Iterator[tuple[Path, bool]]:
    """Folders of this process's group and of all above it, and whether they are of version 2 of control groups."""
    with suppress(OSError):
        for line in OWN_GROUPS.read_text().splitlines():
            _, controllers, place = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            # a container often sees its own group as the root, under which its place is not to be found
            root, own = CONTROL_GROUPS / controllers, CONTROL_GROUPS / controllers / place.lstrip("/")
            if ".." in own.parts:  # of a process that was started outside of this container
                own = root
            for group in (own, *own.parents):
                yield group, not controllers
                if group == root:
                    break
