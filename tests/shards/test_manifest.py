import json

import numpy as np
import pytest

from cbd_fast.errors import InputError
from cbd_fast.shards.long_tail import frequency_groups
from cbd_fast.shards.manifest import read_manifest


def test_groups_have_the_published_limits():
    groups = frequency_groups(np.array([101, 100, 20, 19, 0]))
    assert groups["many"].tolist() == [True, False, False, False, False]
    assert groups["medium"].tolist() == [False, True, True, False, False]
    assert groups["few"].tolist() == [False, False, False, True, True]


def test_round_trip(photo_shards):
    manifest = read_manifest(photo_shards)
    assert manifest.to_json() == (photo_shards / "dataset.json").read_text()
    assert manifest.classes == ["ant", "bee", "cat"]
    assert manifest.splits["train"].class_counts == [12, 5, 2]


def test_missing_folder_and_manifest(tmp_path):
    with pytest.raises(InputError, match="is not a folder"):
        read_manifest(tmp_path / "none")
    with pytest.raises(InputError, match=r"holds no dataset\.json"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 99}, "version 99"),
        ({"classes": None}, "classes"),
        ({"splits": {"train": {}}}, "splits.train"),
    ],
)
def test_other_manifests_are_refused(photo_shards, tmp_path, change, message):
    manifest = json.loads((photo_shards / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps(manifest | change))
    with pytest.raises(InputError, match=message):
        read_manifest(tmp_path)


def test_a_cut_off_manifest_is_refused(photo_shards, tmp_path):
    (tmp_path / "dataset.json").write_bytes((photo_shards / "dataset.json").read_bytes()[:100])
    with pytest.raises(InputError, match="not a manifest"):
        read_manifest(tmp_path)
