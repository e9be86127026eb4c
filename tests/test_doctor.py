import subprocess
import sys

import yaml

from .commands import REPOSITORY
from .test_end_to_end import config  # noqa: F401


def doctor(*arguments):
    command = [sys.executable, "-m", "cbd_fast.doctor", "--seconds", "1", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)


def test_of_shards_alone(photo_shards):
    done = doctor("--shards", photo_shards)
    assert done.returncode == 0, done.stderr
    for part in ("from files, settings as they are", "resident pictures", "reading alone", "from files, decoder=torch"):
        assert part in done.stdout
    assert "loading gives" in done.stdout
    assert "training" not in done.stdout


def test_of_a_run(config, digits_shards):  # noqa: F811
    done = doctor("--shards", digits_shards, "--config", config, "runtime.decoder=torch", "runtime.num_threads=1")
    assert done.returncode == 0, done.stderr
    for part in ("training, stage one", "training, stage two", "from files, all cores", "from files, decoder=dali"):
        assert part in done.stdout
    limits = [line for line in done.stdout.splitlines() if "is the limit" in line]
    assert [line[:12] for line in limits] == ["- stage one:", "- stage two:"]
    assert not (config.parent / "run").exists()  # it only looks


def test_bad_input(photo_shards, tmp_path):
    done = doctor("--shards", tmp_path)
    assert (done.returncode, "dataset.json" in done.stderr) == (2, True)
    done = doctor("--shards", photo_shards, "runtime.resident=1")
    assert done.returncode == 2
    assert "'runtime.resident=1': settings need --config" in done.stderr
    settings = tmp_path / "config.yaml"
    settings.write_text(yaml.safe_dump({"output": "x"}))
    assert doctor("--shards", photo_shards, "--config", settings).returncode == 2
