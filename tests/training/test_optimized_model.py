import pytest
import torch
from accelerate import Accelerator
from torch import nn

from cbd_fast.training.models import BACKBONES, CosineModel, Teachers, build_model
from cbd_fast.training.optimized_model import SideStream, inference_dtype, optimized_for_inference, optimized_teachers

CPU = torch.device("cpu")


def trained(backbone: str, seed: int = 0, target_dim: int | None = None) -> CosineModel:
    """A model whose batch-norms have statistics and weights as after training, not those that do nothing."""
    torch.manual_seed(seed)
    model = build_model(backbone, 10, target_dim)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


@pytest.fixture(scope="module")
def images():
    return torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", BACKBONES)
def test_folded_features_are_those_of_the_plain_model(name, images):
    model = trained(name, target_dim=96)
    form = optimized_for_inference(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in form.modules())
    with torch.no_grad():
        expected, found = model.eval()(images), form(images)
    torch.testing.assert_close(found.features, expected.features, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.logits, expected.logits, atol=20e-4, rtol=0)


def test_the_model_stays_as_it_is(images):
    model = trained("small_convnet").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    form = optimized_for_inference(model)
    form(images)
    assert model.training
    assert not any(module.training for module in form.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in form.parameters())
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["resnet32", "resnet18"])
def test_bf16_keeps_the_features(name, images):
    model = trained(name).eval()
    form = optimized_for_inference(model, torch.bfloat16)
    assert {parameter.dtype for parameter in form.backbone.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        expected, found = model(images), form(images)
    assert found.features.dtype == found.logits.dtype == torch.float32
    cosine = (expected.features * found.features).sum(dim=1)
    # bf16 has 8 bits: the distance to the student's features, the loss's term, is off by less than a thousandth
    assert ((cosine > 0.999) & (cosine < 1 - 1e-9)).all()


def test_the_form_of_a_prepared_model_has_its_own_precision(images):
    model = trained("small_convnet").eval()
    with torch.no_grad():
        expected = model.embed(images)
    Accelerator(cpu=True, mixed_precision="bf16").prepare(model)
    with torch.no_grad():
        assert (model(images).features - expected).abs().max() > 1e-4  # Accelerate's autocast
        torch.testing.assert_close(optimized_for_inference(model)(images).features, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("is_compiled", [False, True])
def test_optimized_teachers_have_the_same_target(is_compiled, images):
    teachers = Teachers([trained("small_convnet", seed) for seed in (0, 1)])
    best = SideStream(optimized_teachers(teachers, torch.float32, is_compiled), CPU)
    target = best.start(images)()
    torch.testing.assert_close(target, teachers(images), atol=1e-4, rtol=0)
    assert not target.requires_grad


def test_best_form_stays_in_eval_mode():
    best = optimized_teachers(Teachers([trained("small_convnet")]), torch.float32, is_compiled=False)
    best.train()
    assert not any(module.training for module in best.modules())
    assert not any(parameter.requires_grad for parameter in best.parameters())


def test_processors_compute_float32_where_fp16_is_wanted():
    cuda = torch.device("cuda")
    assert [inference_dtype(name, CPU) for name in ("no", "bf16", "fp16")] == [
        torch.float32,
        torch.bfloat16,
        torch.float32,
    ]
    assert inference_dtype("fp16", cuda) == torch.float16


@pytest.mark.gpu
def test_a_gpu_computes_teachers_beside(images):
    device = torch.device("cuda")
    teachers = Teachers([trained("resnet32", seed) for seed in (0, 1)]).to(device)
    beside = SideStream(optimized_teachers(teachers, torch.float32, is_compiled=False), device)
    for number in range(10):
        images_ = images.to(device) * number / 10  # made on the caller's stream, just before
        with torch.backends.cudnn.flags(allow_tf32=False):  # TF32 has 11 bits of float32's 24
            target = beside.start(images_)
        torch.randn(1000, 1000, device=device) @ torch.randn(1000, 1000, device=device)
        with torch.backends.cudnn.flags(allow_tf32=False):
            torch.testing.assert_close(target(), teachers(images_), atol=1e-4, rtol=0)
