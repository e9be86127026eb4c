import shutil

import pytest
import torch
from safetensors.torch import load_file

from cbd_fast import load_model
from cbd_fast.errors import InputError
from cbd_fast.system import choose_device
from cbd_fast.training.model_folder import read_model
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
