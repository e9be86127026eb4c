import pytest
import torch
from torch import nn

from cbd_fast.config.schema import Config
from cbd_fast.errors import InputError
from cbd_fast.shards.reader import ShardReader
from cbd_fast.shards.sources.image_folder import folder_source
from cbd_fast.shards.writing.dataset_writer import write_dataset
from cbd_fast.shards.writing.options import WriteOptions
from cbd_fast.training import meter
from cbd_fast.training.checkpoint import best_files, read_state, save_checkpoint
from cbd_fast.training.evaluation import predict_split
from cbd_fast.training.metrics import evaluate
from cbd_fast.training.model_folder import read_model
from cbd_fast.training.plan import models_to_train, plan_models
from cbd_fast.training.saved_state import BestWeights, State
from cbd_fast.training.selection import Best, selection_interval
from cbd_fast.training.trainer import Trainer, summarize
from cbd_fast.ui.dashboard import NullDashboard
from tests.helpers import config_of


@pytest.fixture(scope="module")
def shards_with_val(image_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("shards") / "with_val"
    folders = {"train": image_folder / "train", "val": image_folder / "test", "test": image_folder / "test"}
    write_dataset(folder_source(folders), out, WriteOptions(), num_workers=1)
    return ShardReader(out, "train")


def model_of(value: float) -> nn.Linear:
    model = nn.Linear(2, 2)
    nn.init.constant_(model.weight, value)
    return model


def value_in(best: Best) -> float:
    model = model_of(-1)
    best.load(model)
    assert (model.weight == model.weight[0, 0]).all()
    return model.weight[0, 0].item()


def test_the_best_is_kept(tmp_path):
    best = Best(tmp_path / "student", is_main=True)
    for step, accuracy in ((10, 20.0), (20, 30.0), (30, 30.0), (40, 25.0)):
        best.consider(step, accuracy, model_of(step))
    assert best.state.model_dump() == {"step": 20, "per_class_mean": 30.0}  # of equals, the first
    assert value_in(best) == 20
    assert [path.name for path in (tmp_path / "student").iterdir()] == ["best-00000020.safetensors"]


def test_a_killed_run_goes_on_with_the_best_that_its_checkpoint_knew(tmp_path):
    best = Best(tmp_path, is_main=True)
    best.consider(10, 20.0, model_of(10))
    model = model_of(10)
    state = State(step=15, identity={"images": "12ab"}, best=best.state, best_file=best.file)
    save_checkpoint(tmp_path, model, torch.optim.SGD(model.parameters()), state)
    best.consider(20, 30.0, model_of(20))
    best.consider(30, 40.0, model_of(30))
    assert len(best_files(tmp_path)) == 2  # that of the checkpoint and the best
    again = Best(tmp_path, is_main=True, checkpoint=read_state(tmp_path))
    assert value_in(again) == 10
    assert len(best_files(tmp_path)) == 1
    again.consider(20, 10.0, model_of(21))
    assert value_in(again) == 10


def test_best_weights_that_are_gone_are_missed_at_once(tmp_path):
    with pytest.raises(InputError, match=r"best-00000010.safetensors: missing, .*; remove .* to train it again"):
        Best(tmp_path, is_main=True, checkpoint=State(step=10, identity={}, best=BestWeights(step=10)))


def test_only_the_main_process_writes(tmp_path):
    best = Best(tmp_path / "student", is_main=False)
    best.consider(10, 20.0, model_of(10))
    assert best.state.step == 10
    assert not (tmp_path / "student").exists()


def test_a_validation_split_selects_by_default(photo_shards, shards_with_val):
    without = ShardReader(photo_shards, "train")
    assert selection_interval(config_of(shards=photo_shards), without) is None
    assert selection_interval(config_of(shards=photo_shards, checkpoint_selection="last"), without) is None
    with pytest.raises(
        InputError, match=r"checkpoint_selection: best, but .* has no validation split; make the shards with one"
    ):
        selection_interval(config_of(shards=photo_shards, checkpoint_selection="best"), without)
    for selection in ("auto", "best"):
        config = config_of(shards=shards_with_val.folder, checkpoint_selection=selection)
        assert selection_interval(config, shards_with_val) == 4  # 19 images in steps of 6 are an epoch
        config = config_of(shards=shards_with_val.folder, checkpoint_selection=selection, runtime={"evaluate_every": 7})
        assert selection_interval(config, shards_with_val) == 7
    assert (
        selection_interval(config_of(shards=shards_with_val.folder, checkpoint_selection="last"), shards_with_val)
        is None
    )


class Watched(NullDashboard):
    """What is shown of a run; Ctrl-C at a step."""

    def __init__(self, stops_at=None):
        self.stops_at, self.evaluations = stops_at, []

    def log(self, record):
        if record["step"] == self.stops_at:
            raise KeyboardInterrupt

    def evaluated(self, model, step, metrics, split):
        self.evaluations.append((step, metrics["per_class_mean"]))


def trained(config: Config, dashboard: NullDashboard) -> dict:
    trainer = Trainer(config, dashboard=dashboard)
    trainer.fit()
    return trainer.results


@pytest.mark.parametrize("checkpoint_every", [6, 8])  # in between, and at once with an evaluation
@pytest.mark.parametrize("stops_at", [None, 9])
def test_a_run_reports_the_best_on_the_validation_split(
    shards_with_val, tmp_path, monkeypatch, stops_at, checkpoint_every
):
    accuracies = {4: 40.0, 8: 60.0, 12: 60.0, 16: 50.0}  # of each epoch
    weights = {}

    def counted(form, loader, *others):
        """Weights and split that are evaluated; the step is that of the last line of the log."""
        weights[loader.shards.split, watched.step] = form.weight.clone()
        return predict_split(form, loader, *others)

    class Steps(Watched):
        step = 0

        def log(self, record):
            super().log(record)
            self.step = record["step"]

    def accuracy(predictions):
        is_val = len(weights) and next(reversed(weights))[0] == "val"
        return accuracies[watched.step] if is_val else 10.0

    def evaluated(predictions, names):
        return evaluate(predictions, names) | {"per_class_mean": accuracy(predictions)}

    monkeypatch.setattr(meter, "predict_split", counted)
    monkeypatch.setattr(meter, "evaluate", evaluated)
    monkeypatch.setattr(meter, "per_class_mean", accuracy)
    config = config_of(
        shards=shards_with_val.folder,
        output=str(tmp_path / "run"),
        model={"backbone": "small_convnet"},
        stages="teachers",
        optimization={"steps": 16, "global_batch": 6},
        runtime={"log_every": 1, "checkpoint_every": checkpoint_every, "num_threads": 1},
    )
    watched = Steps(stops_at)
    if stops_at:
        with pytest.raises(KeyboardInterrupt):
            trained(config, watched)
        watched = Steps()
    result = trained(config, watched)["teacher-1"]
    assert result["selected"] == {"step": 8, "per_class_mean": 60.0}
    assert [split for split, _ in weights].count("test") == 1
    model = read_model(tmp_path / "run" / "teacher-1")[0]
    assert torch.equal(model.weight, weights["test", 16])
    assert torch.equal(model.weight, weights["val", 8])
    assert not torch.equal(model.weight, weights["val", 16])
    assert watched.evaluations[-1] == (16, 10.0)
    files = {path.name for path in (tmp_path / "run" / "teacher-1").iterdir()}
    assert files == {"model.safetensors", "config.json", "result.json"}
    assert summarize({"teacher-1": result})["selected"] == {
        "teacher-1": "best on the validation split: step 8 with 60.00 per-class mean"
    }
    with pytest.raises(InputError, match="checkpoint_selection was 'best of every 4 steps', now None"):
        models_to_train(
            plan_models(config.model_copy(update={"checkpoint_selection": "last"}), shards_with_val), "teachers"
        )
