import json
import subprocess
import sys

import pytest

from tests.helpers import REPOSITORY


def benchmark(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "benchmarks/train_step.py", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def test_small_cases(tmp_path):
    options = ["--backbones", "small_convnet", "--teachers", "0,1", "--precision", "no", "--batch-size", 8]
    done = benchmark(
        *options, "--teacher-precision", "bf16", "--rounds", 2, "--seconds", 0, "--out", tmp_path / "out.json"
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out.json").read_text())
    first, second = results["steps"]
    assert (first["num_teachers"], second["num_teachers"]) == (0, 1)
    assert (first["precision"], second["precision"]) == ("no", "no, teachers in bf16")
    assert set(first["rounds"]) == {"naive", "ours", "compiled the other way"}
    assert set(second["rounds"]) == {"naive", "naive teachers", "ours", "student", "teachers"}
    assert all(len(rounds) == 2 and min(rounds) > 0 for case in (first, second) for rounds in case["rounds"].values())
    distances = {case["form"]: case["distance"] for case in results["forms"]}
    assert distances["folded, float32"] < 1e-5
    assert 1e-7 < distances["folded, bfloat16"] < 1e-2
    assert "goals: ours / (student + teachers)" in done.stdout


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--backbones", "resnet99"], "--backbones resnet99: must be among"),
        (["--precision", "fp8"], "--precision fp8: must be among no, bf16, fp16"),
        (["--teachers", "one"], "--teachers one: must be numbers"),
        (["--rounds", "0"], "0: must be at least 1"),
        (["--teachers", "-1"], "--teachers -1: must be numbers"),
    ],
)
def test_impossible_arguments(option, message):
    done = benchmark(*option)
    assert done.returncode == 2
    assert message in done.stderr
