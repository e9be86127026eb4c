"""The benchmark of training, as users type it."""

import json
import os
import subprocess
import sys

import pytest

from tests.helpers import REPOSITORY

TINY = "--backbones small_convnet --teachers 0,2 --batch-size 4 --image-size 32 --steps 1 --rounds 2 --precision no"


def test_both_stages_are_measured_and_written(photo_shards, tmp_path):
    out = tmp_path / "result.json"
    command = [sys.executable, "benchmarks/end_to_end.py", "--shards", photo_shards, "--device", "cpu", "--out", out]
    calm = os.environ | {"OMP_WAIT_POLICY": "passive"}  # threads that wait leave the cores to the tests beside this one
    done = subprocess.run(
        [*command, *TINY.split()], cwd=REPOSITORY, env=calm, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "on CPU" in done.stdout
    result = json.loads(out.read_text())
    assert result["device"] == "CPU"
    cases = result["cases"]
    assert [(case["backbone"], case["num_teachers"]) for case in cases] == [("small_convnet", 0), ("small_convnet", 2)]
    for case in cases:
        rounds = case["rounds"]
        assert all(len(values) == 2 for values in rounds.values())  # the one that warms up does not count
        for constant, shards, ratio in zip(rounds["constant"], rounds["shards"], rounds["ratio"], strict=True):
            assert constant > 0
            assert ratio == pytest.approx(shards / constant)
        assert all(0 <= fraction <= 1 for fraction in rounds["wait_share"])
        assert case["median"]["ratio"] == pytest.approx(sum(rounds["ratio"]) / 2)
