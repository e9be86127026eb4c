import hashlib
import json
import re
import shutil

import pytest
import torch
from torch import nn

from cbd_fast.config.schema import Config
from cbd_fast.errors import InputError
from cbd_fast.registry import BACKBONES
from cbd_fast.training.checkpoint import save_weights
from cbd_fast.training.model_folder import (
    ModelCard,
    build_from_card,
    make_model_card,
    read_model,
    read_model_card,
    write_model_card,
)
from cbd_fast.training.models import build_model
from cbd_fast.training.tensor_files import record_of
from cbd_fast.version import __version__

CLASSES, TRAIN_COUNTS = ["ant", "bee", "Käfer"], [12, 5, 2]
TRAINING = {"num_steps": 7, "seconds": 1.5, "metrics": {"top1": 50.0, "few": None}, "selected": None, "shards": "12ab"}


def config_of(**data) -> Config:
    return Config.model_validate(
        {
            "output": "runs/of/another/machine",
            "data": {"shards": "shards/of/another/machine", "num_classes": 3, "image_size": 32, **data},
            "model": {"backbone": "small_convnet"},
            "mixed_precision": "bf16",
            "optimization": {"steps": 7},
        }
    )


def written(folder, target_dim=None, name="student", **data):
    """A model folder, with the model and the card that went into it."""
    torch.manual_seed(1)
    model = build_model("small_convnet", 3, target_dim)
    card = make_model_card(
        model,
        config_of(**data),
        name=name,
        stage="student",
        classes=CLASSES,
        train_counts=TRAIN_COUNTS,
        training=TRAINING,
    )
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(folder / "model.safetensors", model)
    write_model_card(folder, card)
    return model, card.model_copy(update={"weights": record_of(folder / "model.safetensors")})


@pytest.mark.parametrize(("target_dim", "projected_dim"), [(None, None), (128, None), (96, 96)])
def test_a_copy_of_a_folder_gives_the_same_model(tmp_path, target_dim, projected_dim):
    model, card = written(tmp_path / "run" / "student", target_dim)
    assert (card.feature_dim, card.projected_dim) == (128, projected_dim)
    copy = shutil.copytree(tmp_path / "run" / "student", tmp_path / "elsewhere" / "any name")
    shutil.rmtree(tmp_path / "run")
    before = torch.get_rng_state()
    again, card_again = read_model(copy)
    assert torch.equal(torch.get_rng_state(), before)
    assert card_again == card
    images = torch.rand(2, 3, 32, 32)
    for ours, theirs in zip(again.eval()(images), model.eval()(images), strict=True):
        assert torch.equal(ours, theirs)


def test_the_file_says_all_and_people_can_read_it(tmp_path):
    augmentation = {"crop": "pad_and_crop", "padding": 2, "std": [0.5, 0.5, 0.25], "color_jitter": 0.0}
    written(tmp_path, target_dim=96, augmentation=augmentation)
    text = (tmp_path / "config.json").read_text(encoding="utf-8")
    assert "Käfer" in text
    assert len(text.splitlines()) > 20
    values = json.loads(text)
    training = values.pop("training")
    weights = (tmp_path / "model.safetensors").read_bytes()
    assert values.pop("weights") == {"num_bytes": len(weights), "sha256": hashlib.sha256(weights).hexdigest()}
    assert re.fullmatch("[0-9a-f]{64}", values.pop("sha256"))
    assert values == {
        "format": "cbd_fast model",
        "format_version": 2,
        "name": "student",
        "stage": "student",
        "backbone": "small_convnet",
        "num_classes": 3,
        "feature_dim": 128,
        "projected_dim": 96,
        "classes": CLASSES,
        "train_counts": TRAIN_COUNTS,
        "image_size": 32,
        "preprocessing": {"crop": "center", "center_fraction": 1.0, "mean": None, "std": [0.5, 0.5, 0.25]},
        "orient": False,
        "sixteen_bit": None,
        "mixed_precision": "bf16",
    }
    assert training == TRAINING | {
        "config": config_of(augmentation=augmentation).model_dump(mode="json"),
        "cbd_fast": __version__,
    }


def test_preprocessing_is_that_of_the_evaluation(tmp_path):
    written(tmp_path)
    preprocessing, expected = read_model_card(tmp_path).preprocessing, config_of().data.augmentation.for_test()
    assert preprocessing.crop == expected.crop == "center"
    assert preprocessing.center_fraction == expected.center_fraction == 224 / 256


def test_numbers_that_are_not_finite_are_no_obstacle(tmp_path):
    _, card = written(tmp_path)
    odd = card.model_copy(update={"training": {"metrics": {"mine": float("nan"), "other": float("inf")}}})
    write_model_card(tmp_path, odd)
    json.loads((tmp_path / "config.json").read_text(), parse_constant=pytest.fail)
    assert read_model_card(tmp_path).training == {"metrics": {"mine": None, "other": None}}


def test_a_model_of_a_plugin_asks_for_it(tmp_path):
    _, card = written(tmp_path)
    write_model_card(tmp_path, card.model_copy(update={"backbone": "of_a_plugin"}))
    with pytest.raises(InputError, match=r"config\.json: backbone: must be one of .*'of_a_plugin'.*--plugin FILE"):
        read_model(tmp_path)


def test_another_backbone_of_the_same_name_is_refused(tmp_path, monkeypatch):
    written(tmp_path)
    monkeypatch.setitem(BACKBONES._entries, "small_convnet", lambda: (nn.Flatten(), 3))
    with pytest.raises(InputError, match=r"'small_convnet' has 3 features here, but student was trained with 128"):
        read_model(tmp_path)


def test_fresh_weights(tmp_path):
    model, card = written(tmp_path, target_dim=96)
    fresh = build_from_card(card)
    assert {name: value.shape for name, value in fresh.state_dict().items()} == {
        name: value.shape for name, value in model.state_dict().items()
    }
    assert not torch.equal(fresh.weight, model.weight)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "damaged"),
        ('{"format": "cbd_fast model", "format_ver', "damaged"),
        ("[1, 2]", "format None version None"),
        ('{"architectures": ["ResNetForImageClassification"]}', "format None version None; this version of cbd_fast"),
        (
            '{"format": "cbd_fast model", "format_version": 1}',
            ".* version 1; .* reads 'cbd_fast model' version 2",
        ),
        ('{"format": "cbd_fast model", "format_version": 2}', r"damaged \(name: Field required\)"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_foreign_and_damaged_files_are_refused(tmp_path, content, message):
    written(tmp_path)
    (tmp_path / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=rf"config\.json: {message}"):
        read_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ["ant"]}, "classes has 1 entries, but num_classes is 3"),
        ({"train_counts": [1, 2]}, "train_counts has 2 entries"),
        ({"image_size": 0}, r"image_size: .* greater than 0"),
        ({"preprocessing": {"crop": "random_resized_crop"}}, r"preprocessing\.crop must be center"),
        ({"backbone": 50}, "backbone: Input should be a valid string"),
        ({"color": "red"}, "color: Extra inputs are not permitted"),
    ],
)
def test_impossible_values_are_refused(tmp_path, change, message):
    _, card = written(tmp_path)
    values = json.loads(card.model_dump_json()) | change
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=rf"config\.json: damaged \(.*{message}"):
        read_model_card(tmp_path)


def test_missing_folders_and_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere: no such folder"):
        read_model_card(tmp_path / "nowhere")
    written(tmp_path / "run" / "student")
    with pytest.raises(InputError, match=r"model\.safetensors: not a folder; name the folder that holds"):
        read_model_card(tmp_path / "run" / "student" / "model.safetensors")
    (tmp_path / "run" / "teacher-1" / "checkpoint-00000005").mkdir(parents=True)
    with pytest.raises(InputError, match=r"teacher-1: holds no config\.json, so no finished model"):
        read_model_card(tmp_path / "run" / "teacher-1")
    (tmp_path / "run" / "student" / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"student/model\.safetensors: missing beside its config\.json"):
        read_model(tmp_path / "run" / "student")


def test_the_folder_of_a_run_names_its_models(tmp_path):
    for name in ("teacher-1", "student"):
        written(tmp_path / "run" / name, name=name)
    run = tmp_path / "run"
    with pytest.raises(InputError, match=rf"run: a folder of models; name one of them: {run}/student, {run}/teacher-1"):
        read_model(run)


def test_weights_of_another_model_and_pickles_are_refused(tmp_path):
    model, _ = written(tmp_path)
    save_weights(tmp_path / "model.safetensors", build_model("small_convnet", 7))
    with pytest.raises(InputError, match="not the weights of this model"):
        read_model(tmp_path)
    torch.save(model.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"model\.safetensors: damaged"):
        read_model(tmp_path)


def test_cards_are_immutable(tmp_path):
    _, card = written(tmp_path)
    with pytest.raises(ValueError, match="frozen"):
        card.name = "other"
    assert isinstance(card, ModelCard)
