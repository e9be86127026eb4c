"""The package's values and gradients against the method in plain NumPy, and that against finite differences."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cbd_fast.config.sections import Optimization, StageTwo
from cbd_fast.training.losses import Objective
from cbd_fast.training.models import Teachers, build_model
from cbd_fast.training.optim import cosine_learning_rate, make_optimizer
from tests.training import reference

TOLERANCE = 1e-5
WIDTH = 128  # of small_convnet, whose features the tests choose themselves
NUM_CLASSES = 7
BATCH = 16
STAGE_TWO = StageTwo()
WEIGHTS = {"alpha": 0.4, "beta": 100.0}  # the paper's
NUMBERS_OF_TEACHERS = [0, 1, 2, 4]


class Slot(nn.Module):
    """A backbone whose features are in the image: the student's in row 0, each teacher's in one of its own."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def forward(self, images):
        return images[:, self.number]


def teacher_losses(output, labels):
    return Objective()(output, labels)


def student_losses(output, labels, target, *, alpha, beta):
    return Objective(distillation="cosine_distance", alpha=alpha, beta=beta)(output, labels, target)


def made_up(num_teachers, seed=0, width=WIDTH, batch=BATCH):
    """``(B, 1 + K, width)`` features, labels, and the arrays of a head, all as float32 holds them."""
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(batch, 1 + num_teachers, width)) * rng.uniform(0.1, 10, (batch, 1, 1))
    wide = max(1, num_teachers) * width
    head = {"weight": rng.normal(size=(wide, NUM_CLASSES)) * rng.uniform(0.1, 2, NUM_CLASSES)}
    if num_teachers > 1:
        head |= {
            "projection.weight": rng.normal(size=(wide, width)) / width**0.5,
            "projection.bias": rng.normal(size=wide),
        }
    head = {name: value.astype(np.float32) for name, value in head.items()}
    return images.astype(np.float32), rng.integers(NUM_CLASSES, size=batch), head


def in_reference(images, head):
    """The student and the teachers' target in float64; no target without teachers."""
    images = images.astype(np.float64)
    model = {name: value.astype(np.float64) for name, value in head.items()} | {"pooled": images[:, 0]}
    others = [images[:, number] for number in range(1, images.shape[1])]
    return model, reference.teacher_target(others) if others else None


def in_package(head, num_teachers):
    """The student and its teachers; None without."""
    model = build_model("small_convnet", NUM_CLASSES, target_dim=num_teachers * WIDTH or None)
    model.backbone = Slot(0)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in head.items()})
    models = [build_model("small_convnet", NUM_CLASSES) for _ in range(num_teachers)]
    for number, teacher in enumerate(models, 1):
        teacher.backbone = Slot(number)
    return model, Teachers(models) if models else None


def assert_agrees(found, expected, name=""):
    """To 1e-5 of the largest value, so that small gradients are not small enough to pass unseen."""
    found = found.detach().numpy() if isinstance(found, torch.Tensor) else np.asarray(found)
    assert found.shape == np.shape(expected), name
    difference = np.abs(found - expected).max()
    assert difference <= TOLERANCE * np.abs(expected).max(), (name, difference)


# The reference itself


def test_reference_by_hand():
    # features (3, 4) / 5 = (0.6, 0.8); columns (2, 0) and (0, -3) have directions (1, 0) and (0, -1)
    model = {"pooled": np.array([[3.0, 4.0]]), "weight": np.array([[2.0, 0.0], [0.0, -3.0]])}
    features, logits = reference.features_and_logits(model)
    np.testing.assert_allclose(features, [[0.6, 0.8]])
    np.testing.assert_allclose(logits, [[12.0, -16.0]])
    # teachers (0, 2) and (5, 0) become (0, 1, 1, 0) / sqrt(2)
    target = reference.teacher_target([np.array([[0.0, 2.0]]), np.array([[5.0, 0.0]])])
    np.testing.assert_allclose(target, np.array([[0, 1, 1, 0]]) / 2**0.5)
    # label 1: CE = log(1 + e^28), which is 28 and a trillionth; cosine with (0.8, 0.6) is 0.48 + 0.48 = 0.96, so the
    # loss is 0.6 * 28 + 0.4 * 100 * 0.04 = 16.8 + 1.6
    found = reference.losses(model, np.array([1]), np.array([[0.8, 0.6]]), **WEIGHTS)
    assert found == pytest.approx({"loss": 18.4, "classification_loss": 28.0, "distillation_loss": 0.04})


@pytest.mark.parametrize("num_teachers", NUMBERS_OF_TEACHERS)
def test_gradients_of_the_reference_are_those_of_finite_differences(num_teachers):
    images, labels, head = made_up(num_teachers, seed=num_teachers, width=3, batch=4)
    model, target = in_reference(images, head)
    found = reference.gradients(model, labels, target, **WEIGHTS)
    assert found.keys() == model.keys()
    for name, values in model.items():
        differences = np.empty_like(values)
        for place in np.ndindex(values.shape):
            ends = []
            for shift in (1e-6, -1e-6):
                moved = values.copy()
                moved[place] += shift
                ends.append(reference.losses(model | {name: moved}, labels, target, **WEIGHTS)["loss"])
            differences[place] = (ends[0] - ends[1]) / 2e-6
        np.testing.assert_allclose(found[name], differences, rtol=1e-6, atol=1e-7, err_msg=name)
        assert np.abs(differences).max() > 1e-3  # there is something to compare


# The package's values and gradients


@pytest.mark.parametrize("num_teachers", NUMBERS_OF_TEACHERS)
@pytest.mark.parametrize("seed", range(3))
def test_values_and_gradients(num_teachers, seed):
    arrays, labels, head = made_up(num_teachers, seed)
    expected, expected_target = in_reference(arrays, head)
    model, teachers = in_package(head, num_teachers)
    assert (model.projection is not None) == (num_teachers > 1)
    images = torch.from_numpy(arrays).requires_grad_()
    output = model(images)
    if teachers is None:
        found = teacher_losses(output, torch.from_numpy(labels))
    else:
        target = teachers(images)
        assert_agrees(target, expected_target, "target")
        # the defaults are the paper's weights
        chosen = {"alpha": STAGE_TWO.alpha, "beta": STAGE_TWO.beta}
        found = student_losses(output, torch.from_numpy(labels), target, **chosen)
    features, logits = reference.features_and_logits(expected)
    assert_agrees(output.features, features, "features")
    assert_agrees(output.logits, logits, "logits")
    expected_losses = reference.losses(expected, labels, expected_target, **WEIGHTS)
    assert found.keys() == expected_losses.keys()
    for name, value in expected_losses.items():
        assert_agrees(found[name], value, name)

    found["loss"].backward()
    gradients = reference.gradients(expected, labels, expected_target, **WEIGHTS)
    assert_agrees(images.grad[:, 0], gradients.pop("pooled"), "pooled")
    assert not images.grad[:, 1:].any()  # nothing flows into the teachers
    parameters = dict(model.named_parameters())
    assert parameters.keys() == gradients.keys()
    for name, value in gradients.items():
        assert_agrees(parameters[name].grad, value, name)


@settings(max_examples=15, deadline=None)
@given(
    alpha=st.floats(0, 1),
    beta=st.floats(0, 1000),
    num_teachers=st.sampled_from([1, 2]),
    seed=st.integers(0, 2**32 - 1),
)
def test_total_loss_with_any_weights(alpha, beta, num_teachers, seed):
    arrays, labels, head = made_up(num_teachers, seed)
    expected, expected_target = in_reference(arrays, head)
    model, teachers = in_package(head, num_teachers)
    images = torch.from_numpy(arrays)
    found = student_losses(model(images), torch.from_numpy(labels), teachers(images), alpha=alpha, beta=beta)
    expected_losses = reference.losses(expected, labels, expected_target, alpha, beta)
    for name, value in expected_losses.items():
        assert found[name].item() == pytest.approx(value, rel=TOLERANCE, abs=TOLERANCE), name


@settings(max_examples=25, deadline=None)
@given(length=st.floats(1e-3, 1e3), seed=st.integers(0, 2**32 - 1))
def test_lengths_of_features_and_columns_do_not_matter(length, seed):
    arrays, labels, head = made_up(0, seed)
    expected = reference.losses(in_reference(arrays, head)[0], labels)
    model, _ = in_package({"weight": head["weight"] * np.float32(length)}, 0)
    found = teacher_losses(model(torch.from_numpy(arrays / np.float32(length))), torch.from_numpy(labels))
    assert found["loss"].item() == pytest.approx(expected["loss"], rel=TOLERANCE, abs=TOLERANCE)


# Optimisation


def test_learning_rate_of_every_step():
    # a batch of 128 starts at 0.05; of 4 steps the third is at half of it, the others at (1 +- sqrt(1/2)) / 2
    by_hand = [0.05, 0.05 * 0.8535533906, 0.025, 0.05 * 0.1464466094]
    assert reference.learning_rates(0.1, 128, 4) == pytest.approx(by_hand)
    # ImageNet-LT: 115,846 images, 90 epochs
    chosen = Optimization(epochs=90)
    num_steps = chosen.num_steps(115_846)
    assert num_steps == 81_454  # 81,454.2
    found = [cosine_learning_rate(chosen.learning_rate, step, num_steps) for step in range(num_steps)]
    np.testing.assert_allclose(found, reference.learning_rates(0.1, 128, num_steps), rtol=1e-9, atol=1e-15)


def test_sgd_of_the_reference_by_hand():
    # gradient 2, wd 1 that adds 0.5 * w: w = 1, m = 2.5, w = 1 - 0.1 * 2.5 = 0.75;
    # m = 0.9 * 2.5 + 2 + 0.375 = 4.625, w = 0.75 - 0.2 * 4.625 = -0.175
    variables, accumulators = {"w": np.array([1.0])}, {"w": np.array([0.0])}
    for rate in (0.1, 0.2):
        reference.momentum_update(
            variables,
            accumulators,
            {"w": np.array([2.0])},
            learning_rate=rate,
            momentum=0.9,
            official_weight_decay=1.0,
        )
    assert variables["w"] == pytest.approx(-0.175)


@pytest.mark.parametrize("num_teachers", [0, 1, 2])
@pytest.mark.parametrize("official_weight_decay", [5e-4, 0.2])  # ImageNet-LT's, and one that shows within few steps
def test_steps_of_training(num_teachers, official_weight_decay):
    """Several steps of a head behind a normalisation's scale and shift, which are trained and decay like the rest."""
    num_steps = 6
    head = made_up(num_teachers)[2]
    model, teachers = in_package(head, num_teachers)
    norm = nn.BatchNorm1d(WIDTH, eps=0).eval()  # with mean 0 and variance 1: just scale and shift
    model.backbone = nn.Sequential(Slot(0), norm)
    chosen = Optimization(
        steps=num_steps, global_batch=128, base_learning_rate=0.1, weight_decay=official_weight_decay / 2
    )
    optimizer = make_optimizer(model, chosen)

    variables = {name: value.astype(np.float64) for name, value in head.items()}
    variables |= {"scale": np.ones(WIDTH), "shift": np.zeros(WIDTH)}
    accumulators = {name: np.zeros_like(value) for name, value in variables.items()}
    for step, rate in enumerate(reference.learning_rates(0.1, 128, num_steps)):
        arrays, labels, _ = made_up(num_teachers, seed=100 + step)
        images = torch.from_numpy(arrays)
        for group in optimizer.param_groups:
            group["lr"] = cosine_learning_rate(chosen.learning_rate, step, num_steps)
        output = model(images)
        if teachers is None:
            loss = teacher_losses(output, torch.from_numpy(labels))["loss"]
        else:
            loss = student_losses(output, torch.from_numpy(labels), teachers(images), **WEIGHTS)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

        seen, target = in_reference(arrays, {})
        scaled = seen["pooled"] * variables["scale"] + variables["shift"]
        gradients = reference.gradients(variables | {"pooled": scaled}, labels, target, **WEIGHTS)
        by_scaled = gradients.pop("pooled")
        gradients |= {"scale": (by_scaled * seen["pooled"]).sum(axis=0), "shift": by_scaled.sum(axis=0)}
        reference.momentum_update(
            variables,
            accumulators,
            gradients,
            learning_rate=rate,
            momentum=0.9,
            official_weight_decay=official_weight_decay,
        )
        found = {"scale": norm.weight, "shift": norm.bias} | dict(model.named_parameters())
        for name, value in variables.items():
            assert_agrees(found[name], value, f"{name} after step {step}")
