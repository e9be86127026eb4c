"""The benchmarks of sampling and of long runs, with next to nothing to do."""

import json
import subprocess
import sys

import pytest

from tests.helpers import REPOSITORY

ORDERS = ["--images", "700", "--classes", "7", "--rounds", "1", "--policies", "progressive"]
SOAK = ["--images", "512", "--points", "4", "--crop", "random_resized_crop", "--evaluations", "8"]


def run(script, *arguments):
    command = [sys.executable, f"benchmarks/{script}.py", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)


def test_sampling(tmp_path):
    done = run("sampling", *ORDERS, "--work", tmp_path, "--out", tmp_path / "out.json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert (row["images"], row["classes"], row["sampling"]) == ("700", 7, "progressive")
    assert row["ns per image"] > 0
    assert row["peak, MB"] > row["packages, MB"]


@pytest.mark.parametrize(("max_growth", "code"), [(1000, 0), (-1000, 1)])
def test_soak(digits_shards, tmp_path, max_growth, code):
    options = ["--shards", digits_shards, "--max-growth", max_growth, "--out", tmp_path / "out.json"]
    done = run("soak", *SOAK, *options)
    assert done.returncode == code, done.stderr
    assert ("memory grew by" in done.stderr) == bool(code)
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [row["images"] for row in rows] == [128, 256, 384, 512]
    assert [row["evaluations"] for row in rows] == [2, 4, 6, 8]
    assert len({(row["threads"], row["open files"], row["shared, MB"]) for row in rows}) == 1
    assert rows[0]["shared, MB"] > 0
