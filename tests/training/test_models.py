import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cbd_fast.training.models import BACKBONES, CifarResNet, CosineModel, Teachers, build_model


def test_cosine_classifier_by_hand():
    model = CosineModel(nn.Identity(), 2, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[2.0, 0.0], [0.0, -3.0]]))  # columns (2, 0) and (0, -3)
    features, logits = model(torch.tensor([[3.0, 4.0]]))
    torch.testing.assert_close(features, torch.tensor([[0.6, 0.8]]))
    torch.testing.assert_close(logits, torch.tensor([[20 * 0.6, -20 * 0.8]]))


def test_projection_by_hand():
    model = CosineModel(nn.Identity(), 2, 3, projected_dim=2)
    with torch.no_grad():
        model.projection.weight.copy_(torch.tensor([[1.0, 1.0], [-1.0, 0.0]]))
        model.projection.bias.copy_(torch.tensor([5.0, 1.0]))
    # relu of (3 + 4 + 5, -3 + 1) = (12, 0)
    torch.testing.assert_close(model(torch.tensor([[3.0, 4.0]])).features, torch.tensor([[1.0, 0.0]]))


def test_classifier_starts_glorot_uniform_without_bias():
    torch.manual_seed(0)
    model = build_model("resnet32", 1000)
    limit = math.sqrt(6 / (64 + 1000))
    assert model.weight.shape == (64, 1000)
    assert 0.99 * limit < model.weight.abs().max() <= limit
    assert abs(model.weight.std() - limit / math.sqrt(3)) < 0.01 * limit


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones(name):
    backbone, feature_dim = BACKBONES[name]()
    images = torch.rand(2, 3, 64, 64).to(memory_format=torch.channels_last)
    assert backbone.eval()(images).shape == (2, feature_dim)


def test_resnet32_is_that_of_he_et_al():
    backbone = CifarResNet(5)
    convolutions = [m for m in backbone.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 31  # and the classifier makes 32
    num_parameters = sum(p.numel() for p in backbone.parameters())
    assert abs(num_parameters + 64 * 10 + 10 - 0.46e6) < 0.01e6  # 0.46 million in the paper's table 6
    assert backbone(torch.rand(1, 3, 32, 32)).shape == (1, 64)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_last_batch_norm_of_a_block_starts_at_zero(name):
    backbone, _ = BACKBONES[name]()
    last = "bn2" if name == "resnet18" else "bn3"
    norms = [module for path, module in backbone.named_modules() if path.endswith(last)]
    assert len(norms) == {"resnet18": 8, "resnet50": 16}[name]
    assert all((norm.weight == 0).all() for norm in norms)


def test_convolutions_and_projection_start_glorot_uniform():
    torch.manual_seed(0)
    model = build_model("resnet50", 10, target_dim=4096)
    strided = model.backbone.layer2[0].conv2  # 3 x 3 from 128 to 128
    for weight, limit in (
        (strided.weight, math.sqrt(6 / (9 * 128 + 9 * 128))),
        (model.projection.weight, math.sqrt(6 / (2048 + 4096))),
    ):
        assert 0.99 * limit < weight.abs().max() <= limit
        assert abs(weight.std() - limit / math.sqrt(3)) < 0.01 * limit
    assert (model.projection.bias == 0).all()


def test_projection_only_where_the_target_is_wider():
    assert build_model("small_convnet", 5).projection is None
    assert build_model("small_convnet", 5, target_dim=128).projection is None
    student = build_model("small_convnet", 5, target_dim=256)
    assert student.projection.weight.shape == (256, 128)
    features, logits = student(torch.rand(2, 3, 32, 32))
    assert (features.shape, logits.shape) == ((2, 256), (2, 5))


def test_target_is_joined_and_normalised_again():
    models = [build_model("small_convnet", 5) for _ in range(2)]
    teachers = Teachers(models)
    images = torch.rand(3, 3, 32, 32)
    target = teachers(images)
    with torch.no_grad():
        joined = torch.cat([model(images).features for model in models], dim=1)
    torch.testing.assert_close(target, joined / math.sqrt(2))  # two parts of length 1
    torch.testing.assert_close(target.norm(dim=1), torch.ones(3))


def test_teachers_are_frozen_and_in_eval_mode_for_good():
    teachers = Teachers([build_model("small_convnet", 5)])
    teachers.train()
    nn.ModuleList([teachers]).train()
    before = {name: value.clone() for name, value in teachers.state_dict().items()}
    target = teachers(torch.rand(4, 3, 32, 32))
    assert not target.requires_grad
    assert not any(module.training for module in teachers.modules())
    assert not any(parameter.requires_grad for parameter in teachers.parameters())
    assert all(torch.equal(before[name], value) for name, value in teachers.state_dict().items())


def test_cosine_is_float32_under_autocast():
    model = build_model("small_convnet", 5)
    with torch.autocast("cpu", torch.bfloat16):
        features, logits = model(torch.rand(2, 3, 32, 32))
    assert features.dtype == logits.dtype == torch.float32
    torch.testing.assert_close(features.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(logits, 20 * features @ F.normalize(model.weight, dim=0))
