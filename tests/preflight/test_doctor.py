"""The doctor's measurements; the whole command is tested in tests/cli/test_doctor.py."""

from argparse import Namespace

import pytest

import cbd_fast.preflight.doctor
from cbd_fast.cli.doctor import read_config
from cbd_fast.preflight.doctor import LoaderDoctor, diagnose
from cbd_fast.shards.reader import ShardReader


def test_reading_from_the_disk(photo_shards, tmp_path, monkeypatch):
    monkeypatch.setattr(cbd_fast.preflight.doctor, "MIN_COLD_BYTES", 0)
    shards = ShardReader(photo_shards, "train")
    arguments = Namespace(config=None, overrides=[], shards=photo_shards)
    patient = LoaderDoctor(shards, read_config(arguments, shards), 0.1, tmp_path)
    assert patient._cold_reading_rate() > 0
    assert list(patient.measured) == ["reading alone, from the disk"]


def test_a_diagnosis_without_a_run_is_of_loading_alone(photo_shards):
    shards = ShardReader(photo_shards, "train")
    arguments = Namespace(config=None, overrides=[], shards=photo_shards)
    measured, findings = diagnose(shards, read_config(arguments, shards), seconds=0.7)
    assert {"from files, settings as they are", "cached images"} <= measured.keys()
    assert (list(findings.loading_rates), dict(findings.training_rates)) == (["loading"], {})
    from_files = measured["from files, settings as they are"]
    assert findings.loading_rates["loading"] == pytest.approx(from_files)  # nothing is cached yet
    assert findings.cold_reading_rate is None  # such small images cannot be dropped from memory
    changes = [suggestion.change.partition(" (")[0] for suggestion in findings.suggestions]
    assert changes == ["decoder=torch", "cache=1"]
