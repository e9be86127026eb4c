import subprocess
import sys
from argparse import Namespace

import yaml

import cbd_fast.preflight.doctor
from cbd_fast.preflight.doctor import Doctor, config_of
from cbd_fast.shards.reader import ShardReader
from tests.end_to_end.test_train import config  # noqa: F401
from tests.helpers import REPOSITORY
from tests.loading.test_loader import with_bad_images


def doctor(*arguments):
    command = [sys.executable, "-m", "cbd_fast.doctor", "--seconds", "1", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)


def test_of_shards_alone(photo_shards):
    done = doctor("--shards", photo_shards)
    assert done.returncode == 0, done.stderr
    for part in ("from files, settings as they are", "cached images", "from files, decoder=torch"):
        assert part in done.stdout
    assert "reading alone" not in done.stdout  # such small images cannot be dropped from memory
    assert "loading gives" in done.stdout
    assert "training" not in done.stdout


def test_of_a_run(config, digits_shards):  # noqa: F811
    done = doctor("--shards", digits_shards, "--config", config, "runtime.decoder=torch", "runtime.num_threads=1")
    assert done.returncode == 0, done.stderr
    for part in ("training, teachers", "training, student", "from files, all cores", "from files, decoder=dali"):
        assert part in done.stdout
    limits = [line for line in done.stdout.splitlines() if "is the limit" in line]
    assert [line.partition(":")[0] for line in limits] == ["- teachers", "- student"]
    assert not (config.parent / "run").exists()  # it only looks


def test_only_the_stages_that_run(config, digits_shards):  # noqa: F811
    done = doctor("--shards", digits_shards, "--config", config, "stages=teachers")
    assert done.returncode == 0, done.stderr
    assert "teachers:" in done.stdout
    assert "student:" not in done.stdout


def test_a_config_of_other_shards_is_refused(config, photo_shards):  # noqa: F811
    done = doctor("--shards", photo_shards, "--config", config)
    assert (done.returncode, "data.num_classes: 10, but" in done.stderr) == (2, True)


def test_reading_from_the_disk(photo_shards, tmp_path, monkeypatch):
    monkeypatch.setattr(cbd_fast.preflight.doctor, "MIN_COLD_BYTES", 0)
    shards = ShardReader(photo_shards, "train")
    arguments = Namespace(config=None, overrides=[], shards=photo_shards)
    patient = Doctor(shards, config_of(arguments, shards), 0.1, tmp_path)
    assert patient._cold_reading() > 0
    assert list(patient.measured) == ["reading alone, from the disk"]


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
