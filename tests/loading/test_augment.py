import colorsys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cbd_fast.loading.augment import Augmentation, center_boxes, padded_boxes, random_resized_boxes
from cbd_fast.loading.colors import LUMA, hue_matrices, identity_colors, input_colors, jitter_colors
from tests.helpers import plan_of

MANY = 4000


def apply(matrices, colors):
    """``(B, 3, 4)`` matrices on ``(B, 3)`` colours."""
    return np.einsum("bij,bj->bi", matrices, np.concatenate([colors, np.ones((len(colors), 1))], axis=1))


def fixed(**values):
    """``(1, 7)`` random numbers of jitter_colors for the given factors at strength 1; the others change nothing."""
    values_of_all = {
        "brightness": 1.0,
        "contrast": 1.0,
        "saturation": 1.0,
        "turn": 0.0,
        "order": 0.0,
        "jitter": 0.0,
        "grey": 1.0,
    }
    values_of_all |= values
    factors = [(values_of_all[name] - 0.2) / 1.6 for name in ("brightness", "contrast", "saturation")]
    return np.array(
        [
            [
                *factors,
                (values_of_all["turn"] / 0.2 + 1) / 2,
                values_of_all["order"],
                values_of_all["jitter"],
                values_of_all["grey"],
            ]
        ]
    )


@given(st.integers(0, 2**62), st.integers(0, 10**6), st.integers(1, 7))
def test_a_part_of_a_batch_is_planned_alike(seed, step, fraction):
    whole = plan_of(seed=seed, step=step)
    part = plan_of(seed=seed, step=step, sizes=((100, 80),) * (8 - fraction), positions=np.arange(fraction, 8))
    for name in ("boxes", "flips", "colors"):
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[fraction:])


def test_steps_and_seeds_differ():
    boxes = [plan_of(seed=seed, step=step).boxes.tolist() for seed, step in ((0, 0), (0, 1), (1, 0))]
    assert boxes[0] != boxes[1] != boxes[2] != boxes[0]


def test_take_is_the_plan_of_some():
    whole = plan_of()
    part = whole.take(np.array([3, 1]))
    np.testing.assert_array_equal(part.boxes, whole.boxes[[3, 1]])
    np.testing.assert_array_equal(part.colors, whole.colors[[3, 1]])
    shared = plan_of(Augmentation()).take(np.array([3, 1]))
    assert shared.colors.shape == (1, 3, 4)


@given(st.integers(1, 900), st.integers(1, 900), st.integers(0, 2**62))
def test_random_boxes_lie_within_the_image(height, width, seed):
    boxes = plan_of(sizes=((height, width),) * 4, seed=seed).boxes
    top, left, box_height, box_width = boxes.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (box_height >= 1).all()
    assert (box_width >= 1).all()
    assert (top + box_height <= height).all()
    assert (left + box_width <= width).all()


def test_random_boxes_have_the_published_areas_and_aspects():
    # a square image: a wide one leaves more room for wide boxes
    _, _, heights, widths = plan_of(sizes=((500, 500),) * MANY).boxes.T
    areas, aspects = heights * widths / 500**2, widths / heights
    assert 0.045 < areas.min() < 0.07
    assert 0.9 < areas.max() <= 1
    assert abs(aspects.min() - 3 / 4) < 0.02
    assert abs(aspects.max() - 4 / 3) < 0.03
    assert abs(np.exp(np.log(aspects).mean()) - 1) < 0.02


def test_boxes_that_fit_nowhere_are_the_largest_allowed_in_the_middle():
    # ten tries of the whole area at aspect 1 never fit 100 x 10 or 10 x 100
    random = np.concatenate([np.full((2, 10), 0.999), np.full((2, 10), 0.5), np.zeros((2, 2))], axis=1)
    boxes = random_resized_boxes(np.array([100, 10]), np.array([10, 100]), Augmentation(), random)
    assert boxes.tolist() == [[43, 0, 13, 10], [0, 43, 10, 13]]  # 10 / (3/4) and 10 * 4/3


def test_padded_boxes_by_hand():
    random = np.array([[0.0, 0.999], [0.5, 0.5], [0.999, 0.0]])
    boxes = padded_boxes(np.array([32, 32, 64]), np.array([32, 32, 84]), 4, 32, random)
    # the last: its middle 64 x 64 begins at column 10
    assert boxes.tolist() == [[-4, 4, 32, 32], [0, 0, 32, 32], [8, 10 - 8, 64, 64]]


def test_padded_moves_are_equally_likely():
    boxes = plan_of(Augmentation(crop="pad_and_crop"), sizes=((32, 32),) * MANY).boxes
    assert set(boxes[:, 2]) == set(boxes[:, 3]) == {32}
    counts = np.bincount(boxes[:, 0] + 4, minlength=9)
    assert len(counts) == 9
    assert np.abs(counts - MANY / 9).max() < 5 * np.sqrt(MANY / 9)


def test_center_boxes_by_hand():
    # 375 x 500: 224 / 256 of 375 is 328.125
    assert center_boxes(np.array([375, 256, 3]), np.array([500, 256, 1]), 224 / 256).tolist() == [
        [23, 86, 328, 328],
        [16, 16, 224, 224],
        [1, 0, 1, 1],
    ]


def test_test_squares_are_those_that_training_saw():
    assert Augmentation().for_test().center_fraction == 224 / 256
    assert Augmentation(crop="pad_and_crop").for_test().center_fraction == 1
    assert Augmentation(crop="pad_and_crop", center_fraction=0.5).for_test().center_fraction == 0.5


def test_half_of_training_images_and_no_test_image_is_flipped():
    sizes = ((32, 32),) * MANY
    assert abs(plan_of(sizes=sizes).flips.mean() - 0.5) < 0.04
    test = Augmentation(color_jitter=1.0).for_test()
    assert not plan_of(test, sizes=sizes).flips.any()
    assert not plan_of(Augmentation(flip=False), sizes=sizes).flips.any()


def test_without_jitter_all_images_share_one_matrix():
    plan = plan_of(Augmentation(mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.25)))
    assert plan.colors.shape == (1, 3, 4)
    colors = apply(plan.colors, np.array([[255.0, 0.0, 127.5]]))[0]
    np.testing.assert_allclose(colors, [(1 - 0.5) / 0.1, (0 - 0.4) / 0.2, (0.5 - 0.3) / 0.25], rtol=1e-5)
    np.testing.assert_allclose(plan.color_range, [[-5, -2, -1.2], [5, 3, 2.8]], rtol=1e-6)


def test_jitter_that_changes_nothing():
    np.testing.assert_allclose(jitter_colors(fixed(), 1.0), identity_colors(1), atol=1e-12)
    np.testing.assert_allclose(jitter_colors(fixed(brightness=1.8, jitter=0.9), 1.0), identity_colors(1), atol=1e-12)


COLOR = np.array([[0.2, 0.5, 0.9]])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"brightness": 1.5}, 1.5 * COLOR),
        ({"contrast": 0.5}, 0.5 * COLOR + 0.25),
        ({"saturation": 0.25}, 0.25 * COLOR + 0.75 * (COLOR @ LUMA)),
        ({"grey": 0.0}, np.full((1, 3), 0.299 * 0.2 + 0.587 * 0.5 + 0.114 * 0.9)),
        ({"brightness": 1.5, "contrast": 0.5, "order": 0.0}, 0.5 * (1.5 * COLOR) + 0.25),
        ({"brightness": 1.5, "contrast": 0.5, "order": 0.9}, 1.5 * (0.5 * COLOR + 0.25)),
    ],
)
def test_jitter_by_hand(values, expected):
    np.testing.assert_allclose(apply(jitter_colors(fixed(**values), 1.0), COLOR), expected, atol=1e-12)


def test_hue_turns_colours_and_keeps_greys_and_luma():
    turns = np.array([-0.2, 0.05, 0.1, 0.2])
    matrices = hue_matrices(turns)
    np.testing.assert_allclose(matrices @ np.ones(3), np.ones((4, 3)), atol=1e-12)
    np.testing.assert_allclose(LUMA @ matrices, np.tile(LUMA, (4, 1)), atol=1e-12)
    np.testing.assert_allclose(hue_matrices(np.array([1.0]))[0], np.eye(3), atol=1e-12)
    # about as far as a turn of HSV's hue, in one direction for all colours
    moved = []
    for color in ([0.6, 0.4, 0.4], [0.4, 0.6, 0.4], [0.4, 0.4, 0.6]):
        hues = [colorsys.rgb_to_hsv(*(matrix @ color))[0] - colorsys.rgb_to_hsv(*color)[0] for matrix in matrices]
        moved.append((np.array(hues) + 0.5) % 1 - 0.5)
    sign = np.sign(moved[0][3])
    np.testing.assert_allclose(sign * np.array(moved), np.tile(turns, (3, 1)), atol=0.06)


def test_jitter_does_not_darken_on_average():
    colors = apply(jitter_colors(np.random.default_rng(0).random((MANY, 7)), 1.0), np.full((MANY, 3), 0.5))
    assert abs(colors.mean() - 0.5) < 0.02


def test_jitter_has_the_published_probabilities():
    matrices = jitter_colors(np.random.default_rng(0).random((MANY, 7)), 1.0)
    is_grey = np.isclose(matrices[:, 0, :3], matrices[:, 1, :3]).all(axis=1)
    unchanged = np.isclose(matrices, np.eye(3, 4)).all(axis=(1, 2))
    assert abs(is_grey.mean() - 0.2) < 0.03
    assert abs(unchanged.mean() - 0.2 * 0.8) < 0.03


def test_everything_is_one_matrix():
    jitter = jitter_colors(np.random.default_rng(0).random((5, 7)), 1.0)
    mean, std = np.array([0.5, 0.4, 0.3]), np.array([0.1, 0.2, 0.25])
    pixels = np.random.default_rng(1).integers(0, 256, (5, 3))
    np.testing.assert_allclose(
        apply(input_colors(jitter, mean, std), pixels), (apply(jitter, pixels / 255) - mean) / std, rtol=1e-9
    )


@pytest.mark.parametrize(
    "settings",
    [{"min_area": 0}, {"min_area": 0.5, "max_area": 0.4}, {"std": (1, 0, 1)}, {"crop": "mid"}, {"flop": True}],
)
def test_impossible_augmentations_are_refused(settings):
    with pytest.raises(ValidationError):
        Augmentation(**settings)
