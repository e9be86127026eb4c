import json

import pytest

from cbd_fast.errors import InputError
from cbd_fast.shards.manifest import Recipe
from cbd_fast.shards.writing.work_folder import RECIPE_NAME, begin_work
from cbd_fast.shards.writing.work_items import CATALOG_NAME


def recipe(**fields):
    return Recipe(**{"source": "folder", "options": {"quality": 90}, "seed": 0, "input_sha256": "a"} | fields)


@pytest.fixture
def begun(tmp_path):
    begin_work(tmp_path, tmp_path, recipe(), "exact")
    (tmp_path / "train-000000.json").write_text("a finished shard")
    return tmp_path


def test_the_same_work_goes_on(begun):
    before = sorted(begun.iterdir())
    begin_work(begun, begun, recipe(), "exact")
    assert sorted(begun.iterdir()) == before


@pytest.mark.parametrize(
    ("asked_for", "exact_digest", "changes"),
    [
        (recipe(seed=1), "exact", "seed 0 there, 1 asked for"),
        (recipe(options={"quality": 80}), "exact", "quality 90 there, 80 asked for"),
        (recipe(), "other", "the files have changed since"),
    ],
)
def test_other_work_is_refused(begun, asked_for, exact_digest, changes):
    with pytest.raises(InputError, match=rf"half-made shards of something else \({changes}\)"):
        begin_work(begun, begun, asked_for, exact_digest)


def test_work_of_another_version_is_refused(begun):
    there = json.loads((begun / RECIPE_NAME).read_text())
    (begun / RECIPE_NAME).write_text(json.dumps({"recipe": {"settings": {}}, "pictures": there["images"]}))
    with pytest.raises(InputError, match=r"something else \(by another version of cbd_fast\)"):
        begin_work(begun, begun, recipe(), "exact")


def test_work_without_a_finished_shard_begins_anew(begun):
    (begun / "train-000000.json").unlink()
    (begun / "train-000000.npy").touch()
    (begun / CATALOG_NAME).touch()
    begin_work(begun, begun, recipe(seed=1), "exact")
    assert sorted(path.name for path in begun.iterdir()) == [CATALOG_NAME, RECIPE_NAME]
