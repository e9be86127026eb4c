import os

import psutil
import pytest

from cbd_fast import resources
from cbd_fast.resources import available_bytes, num_cores, num_cores_of_all


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Control groups of a machine with 64 cores and plenty of memory; writes their files."""
    monkeypatch.setattr(resources, "CONTROL_GROUPS", tmp_path)
    monkeypatch.setattr(resources, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 10**12}))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)

    def write(own, files):
        (tmp_path / "own").write_text(own)
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return write


MEMORY = {"memory.max": "5000000", "memory.current": "4000000", "memory.stat": "inactive_file 500000\n"}


def test_without_limits(groups):
    groups("0::/\n", {"cpu.max": "max 100000\n", "memory.max": "max\n"})
    assert (num_cores_of_all(), available_bytes()) == (64, 10**12)


def test_where_there_are_no_control_groups(groups):
    assert (num_cores_of_all(), available_bytes()) == (64, 10**12)


@pytest.mark.parametrize(("quota", "cores"), [("200000", 2), ("150000", 2), ("50000", 1), ("1000", 1)])
def test_a_quota_of_processor_time(groups, quota, cores):
    groups("0::/\n", {"cpu.max": f"{quota} 100000\n"})
    assert num_cores_of_all() == cores


@pytest.mark.parametrize(("quota", "cores"), [("300000", 3), ("-1", 64)])
def test_the_quota_of_version_1(groups, quota, cores):
    files = {"cpu,cpuacct/job/cpu.cfs_quota_us": quota, "cpu,cpuacct/job/cpu.cfs_period_us": "100000"}
    groups("4:cpu,cpuacct:/job\n3:cpuset:/\n0::/\n", files)
    assert num_cores_of_all() == cores


def test_processes_share_a_quota(groups, monkeypatch):
    groups("0::/\n", {"cpu.max": "400000 100000\n"})
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert num_cores() == 2


@pytest.mark.parametrize("level", ["", "pods/", "pods/pod/", "pods/pod/container/"])
def test_limits_of_every_level_count(groups, level):
    files = {"pods/pod/container/memory.max": "max\n", "pods/pod/container/cpu.max": "max 100000\n"}
    files |= {level + name: text for name, text in MEMORY.items()} | {level + "cpu.max": "100000 50000\n"}
    groups("0::/pods/pod/container\n", files)
    assert (num_cores_of_all(), available_bytes()) == (2, 1_500_000)


@pytest.mark.parametrize("own", ["0::/machine/not/to/be/seen\n", "0::/../..\n"])
def test_a_container_sees_its_own_group_as_the_root(groups, own):
    groups(own, MEMORY | {"cpu.max": "100000 100000\n"})
    assert (num_cores_of_all(), available_bytes()) == (1, 1_500_000)


def test_memory_of_version_1(groups):
    files = {"limit_in_bytes": "5000000", "usage_in_bytes": "6000000", "stat": "total_inactive_file 500000\n"}
    groups("4:memory:/job\n", {f"memory/job/memory.{name}": text for name, text in files.items()})
    assert available_bytes() == 0
