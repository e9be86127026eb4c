import json

import numpy as np
import pytest

from cbd_fast.errors import InputError
from cbd_fast.shards.long_tail import frequency_groups
from cbd_fast.shards.manifest import FORMAT_VERSION, is_indexed_in_place, read_manifest


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
        ({"format_version": "new"}, "format_version 'new'"),
        ({"format": "pictures"}, "format 'pictures', not 'cbd_fast shards'"),
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


def of_version_1(manifest, **recipe):
    """A manifest as version 1 had it, with other names of its fields."""
    splits = {"train": {"num_pictures": 19, "pictures_per_class": [12, 5, 2]}}
    recipe = {"source": "folder", "settings": {}} | recipe
    return manifest | {"format_version": 1, "splits": splits, "recipe": recipe}


@pytest.mark.parametrize(
    ("source", "remedy"),
    [
        ("folder", "make the shards again, in another folder"),
        ("webdataset in place", "index the shards again with cbd-fast index"),
    ],
)
def test_version_1_is_refused_in_one_line_whatever_its_fields(photo_shards, tmp_path, source, remedy):
    assert FORMAT_VERSION == 2
    manifest = json.loads((photo_shards / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps(of_version_1(manifest, source=source)))
    with pytest.raises(InputError) as refused:
        read_manifest(tmp_path)
    expected = f"made by an older version of cbd_fast (format version 1; this one reads 2); {remedy}"
    assert str(refused.value) == f"{tmp_path / 'dataset.json'}: {expected}"
    assert is_indexed_in_place(tmp_path) == (source != "folder")


def test_a_newer_version_asks_for_an_update(photo_shards, tmp_path):
    manifest = json.loads((photo_shards / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps(manifest | {"format_version": 3, "splits": []}))
    with pytest.raises(InputError, match=r"by a newer version .*version 3; this one reads 2.*; update cbd_fast"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("text", ["[]", '"dataset"', "\udcff"])
def test_what_is_no_json_object_is_refused(tmp_path, text):
    (tmp_path / "dataset.json").write_text(text, errors="surrogateescape")
    with pytest.raises(InputError, match="not a manifest"):
        read_manifest(tmp_path)


def test_records_never_change(photo_shards):
    record = read_manifest(photo_shards).splits["train"]
    for part, name in ((record, "num_images"), (record.shards[0], "file")):
        with pytest.raises(ValueError, match="frozen"):
            setattr(part, name, 0)
