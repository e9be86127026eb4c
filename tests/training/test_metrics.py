import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, f1_score

from cbd_fast.registry import METRICS
from cbd_fast.training.metrics import Predictions, evaluate, per_class_accuracy
from tests.helpers import registered

DEFAULT = ("top1", "top5", "per_class_mean", "many", "medium", "few")


def predictions_of(labels, guesses, train_counts) -> Predictions:
    guesses = np.array(guesses, np.int64)
    return Predictions(
        indices=np.arange(len(labels)),
        labels=np.array(labels, np.int64),
        guesses=guesses,
        probabilities=np.zeros(guesses.shape, np.float32),
        train_counts=np.array(train_counts),
    )


def predictions_with(counts, train_counts) -> Predictions:
    """As many images, first guesses and guesses among the first two of each class as ``counts`` has."""
    labels, guesses = [], []
    num_classes = len(train_counts)
    for label, (num_images, num_first, num_among) in enumerate(np.transpose(counts)):
        other, another = (label + 1) % num_classes, (label + 2) % num_classes
        labels += [label] * num_images
        guesses += [(label, other)] * num_first + [(other, label)] * (num_among - num_first)
        guesses += [(other, another)] * (num_images - num_among)
    return predictions_of(labels, guesses, train_counts)


def test_metrics_by_hand():
    train_counts = np.array([200, 50, 10, 5])
    # images, first guesses, among five: classes of 10, 20, 4 and none
    counts = np.array([[10, 20, 4, 0], [9, 10, 1, 0], [10, 15, 2, 0]])
    predictions = predictions_with(counts, train_counts)
    np.testing.assert_array_equal(predictions.counts, counts)
    evaluation = evaluate(predictions, [*DEFAULT, "balanced_top5"])
    assert evaluation["top1"] == pytest.approx(100 * 20 / 34)
    assert evaluation["top5"] == pytest.approx(100 * 27 / 34)
    assert evaluation["per_class_mean"] == pytest.approx((90 + 50 + 25) / 3)
    assert (evaluation["many"], evaluation["medium"], evaluation["few"]) == (90, 50, 25)
    assert evaluation["balanced_top5"] == pytest.approx((100 + 75 + 50) / 3)
    assert np.isnan(per_class_accuracy(counts)[3])


def test_what_is_not_there_is_none():
    nothing = predictions_of([], np.empty((0, 2)), [5, 5])
    assert set(evaluate(nothing, METRICS).values()) == {None}
    only_few = evaluate(predictions_with([[2, 2], [1, 2], [2, 2]], [5, 5]), DEFAULT)
    assert (only_few["many"], only_few["medium"], only_few["few"]) == (None, None, 75)


def test_macro_f1_by_hand():
    # class 0: 2 of 3 right and once taken for another; class 1: 1 of 1 and twice guessed; class 2: never
    predictions = predictions_of([0, 0, 0, 1], [[0], [0], [1], [1]], [9, 9, 9])
    assert evaluate(predictions, ["macro_f1"])["macro_f1"] == pytest.approx(
        100 * (2 * 2 / (3 + 2) + 2 * 1 / (1 + 2)) / 2
    )


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 6), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_as_scikit_learn_has_them(num_classes, num_images, seed):
    rng = np.random.default_rng(seed)
    labels, guesses = rng.integers(num_classes, size=(2, num_images))
    found = evaluate(predictions_of(labels, guesses[:, None], np.ones(num_classes)), ["macro_f1", "per_class_mean"])
    assert found["macro_f1"] == pytest.approx(100 * f1_score(labels, guesses, average="macro"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of guesses that are no label
        assert found["per_class_mean"] == pytest.approx(100 * balanced_accuracy_score(labels, guesses))


def test_a_metric_of_the_user():
    def mean_confidence(predictions):
        """Mean probability of the first guess."""
        return 100 * predictions.probabilities[:, 0].mean()

    with registered(METRICS, "mean_confidence", mean_confidence):
        assert evaluate(predictions_of([0, 1], [[0], [1]], [5, 5]), ["mean_confidence", "top1"]) == {
            "mean_confidence": 0.0,
            "top1": 100.0,
        }
        found = evaluate(predictions_of([0], [[0]], [5, 5]), ["mean_confidence"])
        assert type(found["mean_confidence"]) is float  # which JSON can hold, and NumPy's float32 cannot
        assert METRICS.describe()["mean_confidence"] == "Mean probability of the first guess."
