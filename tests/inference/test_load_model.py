import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from cbd_fast import load_model
from cbd_fast.errors import InputError
from cbd_fast.system import choose_device
from cbd_fast.training.checked_json import read_object
from cbd_fast.training.model_folder import read_model, read_model_card, write_model_card
from cbd_fast.training.models import CosineModel


def test_the_model_is_ready_to_use_and_knows_itself(model_folder):
    model = load_model(model_folder, device="cpu")
    assert isinstance(model, CosineModel)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.classes == ("ant", "bee", "cat")
    assert model.image_size == 32
    assert (model.preprocessing.crop, model.preprocessing.mean) == ("center", (0.4, 0.4, 0.4))
    assert model.training_summary["num_steps"] == 1
    assert model.training_summary["config"]["model"]["backbone"] == "small_convnet"
    assert model.card.train_counts == (12, 5, 2)


def test_it_computes_what_was_trained(model_folder):
    images = torch.rand(4, 3, 32, 32)
    before = torch.get_rng_state()
    model, (trained, _) = load_model(model_folder, device="cpu"), read_model(model_folder)
    assert torch.equal(torch.get_rng_state(), before)
    output, expected = model(images), trained.eval()(images)
    assert torch.equal(output.features, expected.features)
    assert torch.equal(output.logits, expected.logits)
    assert output.features.shape == (4, 96)
    assert model.state_dict().keys() == load_file(model_folder / "model.safetensors").keys()


def test_a_copy_loads_anywhere(model_folder, tmp_path):
    copy = shutil.copytree(model_folder, tmp_path / "copy")
    images = torch.rand(2, 3, 32, 32)
    logits = load_model(model_folder, "cpu")(images).logits
    assert torch.equal(load_model(str(copy), torch.device("cpu"))(images).logits, logits)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_flipped_bits_are_noticed(model_folder, tmp_path, name):
    folder = shutil.copytree(model_folder, tmp_path / "copy")
    whole = (folder / name).read_bytes()
    for position in (0, 5, len(whole) // 3, len(whole) // 2, len(whole) - 2, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        (folder / name).write_bytes(damaged)
        with pytest.raises(InputError, match=rf"{name}: .*; copy the folder again, or train again"):
            load_model(folder, "cpu")
    (folder / name).write_bytes(whole)
    load_model(folder, "cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"projected_dim": 2**40}, r"model\.safetensors: not the weights of this model \(weight is \(96, 3\), not"),
        ({"projected_dim": None}, r"model\.safetensors: not the weights of this model"),
        ({"image_size": 2**40}, r"config\.json: damaged \(image_size"),
        ({"num_classes": 2**40}, r"config\.json: damaged \(classes has 3 entries"),
    ],
)
def test_cards_of_other_sizes_take_no_memory(model_folder, tmp_path, change, message):
    folder = shutil.copytree(model_folder, tmp_path / "copy")
    card = read_object(folder / "config.json", "")
    (folder / "config.json").write_text(json.dumps(card | change))
    with pytest.raises(InputError, match=message):
        load_model(folder, "cpu")


def test_weights_that_are_not_finite_are_refused(model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "copy")
    tensors = load_file(folder / "model.safetensors")
    tensors["weight"][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    write_model_card(folder, read_model_card(folder))
    with pytest.raises(InputError, match=r"model\.safetensors: of no use \(weight: not finite\)"):
        load_model(folder, "cpu")


def test_the_folder_of_a_run_is_refused_with_the_names_of_its_models(model_folder):
    with pytest.raises(InputError, match=f"a folder of models; name one of them: {model_folder}"):
        load_model(model_folder.parent)


@pytest.mark.parametrize("device", ["nonsense", "mps", "meta", "cuda:99", "cpu cpu"])
def test_devices_that_are_not_there_are_refused(device, model_folder):
    with pytest.raises(InputError, match=f"device='{device}'"):
        load_model(model_folder, device)


def test_the_gpu_is_chosen_where_there_is_one():
    assert choose_device() == torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    assert choose_device("cpu") == torch.device("cpu")
