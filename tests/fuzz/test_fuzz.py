"""The short form of ``make fuzz``: some cases of each kind, of a seed that stays."""

import json
import subprocess
import sys

import numpy as np
import pytest

from . import mutate, runner

SEED, COUNT = 14, 600


def test_cases_are_functions_of_their_seed():
    value = {"a": [1, {"b": "c"}], "d": None}
    for case in range(200):
        first, second = (np.random.default_rng([SEED, case]) for _ in range(2))
        assert repr(mutate.mutated_json(first, value)) == repr(mutate.mutated_json(second, value))
        assert mutate.mutated_bytes(first, b"some bytes") == mutate.mutated_bytes(second, b"some bytes")
        mutate.json_bytes(first, mutate.mutated_json(first, value))
    assert value == {"a": [1, {"b": "c"}], "d": None}


def test_all_kinds_have_their_part():
    shares = runner.shared_out(25_000, None)
    assert sum(shares.values()) == 25_000
    assert min(shares.values()) >= 2000
    assert runner.shared_out(9, "tar") == {"tar": 9}


class Wrong:
    """Fails in all ways that there are."""

    def __init__(self, folder):
        self.files = {"a.json": b"{}"}
        self.folder = folder / "shards"
        self.folder.mkdir(exist_ok=True)

    def mutate(self, rng):
        return {"a.json": b"%d" % rng.integers(9)}

    def check(self, case):
        if case == 1:
            raise KeyError("odd")
        if case == 2:
            (self.folder.parent.parent / "outside").write_text("evil")


def test_what_fails_is_told_and_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runner, "make_target", lambda kind, folder: Wrong(folder))
    monkeypatch.setattr("tests.fuzz.shard_targets.make_shards", lambda folder: None)
    with pytest.raises(SystemExit) as ended:
        runner.work_off(SEED, {"index": 4}, 0, tmp_path / "files", tmp_path / "failures")
    assert ended.value.code == runner.EXIT_REPLACE
    failures = [json.loads(line.removeprefix("FAILED ")) for line in capsys.readouterr().out.splitlines()]
    assert [failure["case"] for failure in failures] == [1, 2]
    assert "KeyError: 'odd'" in failures[0]["reason"]
    assert "beside the folder" in failures[1]["reason"]
    assert (tmp_path / "failures" / f"index-{SEED}-1" / "a.json").is_file()
    assert (tmp_path / "files" / "now" / "shards" / "a.json").read_bytes() == b"{}"
    assert (tmp_path / "position").read_text() == "2"


@pytest.mark.slow
def test_no_case_fails(tmp_path):
    command = [sys.executable, "-m", "tests.fuzz", "--seed", str(SEED), "--count", str(COUNT)]
    done = subprocess.run(
        [*command, "--failures", str(tmp_path)], cwd=runner.REPOSITORY, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(f"{kind}: {number} cases, 0 failures" in done.stdout for kind, number in
               runner.shared_out(COUNT, None).items()), done.stdout  # fmt: skip
