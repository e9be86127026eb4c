"""The doctor as users call it; its measurements are in tests/preflight/test_doctor.py."""

import os
import subprocess
import sys

import pytest
import yaml

from cbd_fast.cli.doctor import parse_arguments
from tests import ALL_CORES
from tests.helpers import REPOSITORY, digits_config, with_bad_images

pytestmark = pytest.mark.slow


@pytest.fixture
def config(digits_shards, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(digits_config(tmp_path / "run", digits_shards).to_yaml())
    return path


def use_all_cores():
    os.sched_setaffinity(0, ALL_CORES)


def doctor(*arguments):
    command = [sys.executable, "-m", "cbd_fast.doctor", "--seconds", "1", *map(str, arguments)]
    return subprocess.run(
        command, cwd=REPOSITORY, preexec_fn=use_all_cores, capture_output=True, text=True, timeout=120
    )


def test_of_shards_alone(photo_shards):
    done = doctor("--shards", photo_shards)
    assert done.returncode == 0, done.stderr
    for part in ("from files, settings as they are", "cached images", "from files, decoder=torch"):
        assert part in done.stdout
    assert "reading alone" not in done.stdout  # such small images cannot be dropped from memory
    assert "loading gives" in done.stdout
    assert "training" not in done.stdout


def test_of_a_run(config, digits_shards):
    done = doctor("--shards", digits_shards, "--config", config, "runtime.decoder=torch", "runtime.num_threads=1")
    assert done.returncode == 0, done.stderr
    for part in ("training, teachers", "training, student", "from files, all cores", "from files, decoder=dali"):
        assert part in done.stdout
    limits = [line for line in done.stdout.splitlines() if "is the limit" in line]
    assert [line.partition(":")[0] for line in limits] == ["- teachers", "- student"]
    assert not (config.parent / "run").exists()  # it only looks


def test_only_the_stages_that_run(config, digits_shards):
    done = doctor("--shards", digits_shards, "--config", config, "stages=teachers")
    assert done.returncode == 0, done.stderr
    assert "teachers:" in done.stdout
    assert "student:" not in done.stdout


def test_a_config_of_other_shards_is_refused(config, photo_shards):
    done = doctor("--shards", photo_shards, "--config", config)
    assert (done.returncode, "data.num_classes: 10, but" in done.stderr) == (2, True)


def test_bad_images_are_passed_over(photo_shards, tmp_path):
    copy, _ = with_bad_images(photo_shards, tmp_path, 3)
    done = doctor("--shards", copy)
    assert done.returncode == 0, done.stderr


def test_bad_input(photo_shards, tmp_path):
    done = doctor("--shards", tmp_path)
    assert (done.returncode, "dataset.json" in done.stderr) == (2, True)
    done = doctor("--shards", photo_shards, "runtime.cache=1")
    assert done.returncode == 2
    assert "'runtime.cache=1': settings need --config" in done.stderr
    settings = tmp_path / "config.yaml"
    settings.write_text(yaml.safe_dump({"output": "x"}))
    assert doctor("--shards", photo_shards, "--config", settings).returncode == 2


def test_settings_may_stand_anywhere():
    arguments = parse_arguments(["a=1", "--shards", "x", "b=2", "--config", "y.yaml", "c=3"])
    assert arguments.overrides == ["a=1", "b=2", "c=3"]
    assert (arguments.shards.name, arguments.config.name, arguments.seconds) == ("x", "y.yaml", 30)
