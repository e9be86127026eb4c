import json

import pytest
from torch import nn

from cbd_fast.config import Config
from cbd_fast.errors import InputError
from cbd_fast.sharding.shard_set import ShardSet
from cbd_fast.sharding.sources import folder_source
from cbd_fast.sharding.wanted import Wanted
from cbd_fast.sharding.writer import write_dataset
from cbd_fast.training.selection import Best, selection_interval


@pytest.fixture(scope="module")
def shards_with_val(picture_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("shards") / "with_val"
    folders = {"train": picture_folder / "train", "val": picture_folder / "test", "test": picture_folder / "test"}
    write_dataset(folder_source(folders), out, Wanted(), num_workers=1)
    return ShardSet(out, "train")


def config_of(shards, **settings) -> Config:
    optimization = {"steps": 5, "global_batch": 6}
    data = {"shards": str(shards), "num_classes": 3}
    return Config.model_validate({"output": "", "data": data, "optimization": optimization} | settings)


def model_of(value: float) -> nn.Linear:
    model = nn.Linear(2, 2)
    nn.init.constant_(model.weight, value)
    return model


def value_in(best: Best) -> float:
    model = model_of(-1)
    best.load(model)
    assert (model.weight == model.weight[0, 0]).all()
    return float(model.weight[0, 0])


def test_the_best_is_kept(tmp_path):
    best = Best(tmp_path / "student", is_main=True)
    for step, accuracy in ((10, 20.0), (20, 30.0), (30, 30.0), (40, 25.0)):
        best.offer(step, accuracy, model_of(step))
    assert best.state == {"step": 20, "per_class_mean": 30.0}  # of equals, the first
    assert value_in(best) == 20
    assert [path.name for path in (tmp_path / "student").iterdir()] == ["best-00000020.safetensors"]


def test_a_killed_run_goes_on_with_the_best_that_its_checkpoint_knew(tmp_path):
    best = Best(tmp_path, is_main=True)
    best.offer(10, 20.0, model_of(10))
    state = json.loads(json.dumps(best.state))  # in the checkpoint's file
    best.checkpointed()
    best.offer(20, 30.0, model_of(20))
    best.offer(30, 40.0, model_of(30))
    assert len(list(tmp_path.iterdir())) == 2  # that of the checkpoint and the best
    again = Best(tmp_path, is_main=True, found=state)
    assert value_in(again) == 10
    assert len(list(tmp_path.iterdir())) == 1
    again.offer(20, 10.0, model_of(21))
    assert value_in(again) == 10


def test_only_the_main_process_writes(tmp_path):
    best = Best(tmp_path / "student", is_main=False)
    best.offer(10, 20.0, model_of(10))
    assert best.state["step"] == 10
    assert not (tmp_path / "student").exists()


def test_a_validation_split_selects_by_default(photo_shards, shards_with_val):
    without = ShardSet(photo_shards, "train")
    assert selection_interval(config_of(photo_shards), without) is None
    assert selection_interval(config_of(photo_shards, select="last"), without) is None
    with pytest.raises(InputError, match="select: best, but .* has no validation split; make the shards with one"):
        selection_interval(config_of(photo_shards, select="best"), without)
    for select in ("auto", "best"):
        config = config_of(shards_with_val.folder, select=select)
        assert selection_interval(config, shards_with_val) == 4  # 19 pictures in steps of 6 are an epoch
        config = config_of(shards_with_val.folder, select=select, runtime={"evaluate_every": 7})
        assert selection_interval(config, shards_with_val) == 7
    assert selection_interval(config_of(shards_with_val.folder, select="last"), shards_with_val) is None
