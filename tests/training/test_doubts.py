import json

import numpy as np
import pytest

from cbd_fast.cli.train import fit
from cbd_fast.loading.augment import Augmentation
from cbd_fast.training.doubts import accuracies_elsewhere, doubts
from cbd_fast.training.model_folder import ModelCard, write_model_card
from tests.helpers import digits_config

CARD = ModelCard(
    name="teacher-1",
    stage="teachers",
    backbone="small_convnet",
    num_classes=1,
    feature_dim=1,
    classes=("ant",),
    train_counts=(1,),
    image_size=8,
    preprocessing=Augmentation(crop="center"),
    training={},
)


def result(*correct, num_images=50):
    counts = np.array([[num_images] * len(correct), correct, correct])
    return {"counts": counts.tolist(), "metrics": {}}


def test_good_models_are_not_doubted():
    assert doubts({"teacher-1": result(45, 40, 10, 5), "student": result(40, 40, 20, 15)}) == []
    assert doubts({"teacher-1": result(40, 40), "student": result(41, 41)}) == []
    assert doubts({}) == []
    assert doubts({"teacher-1": {"counts": []}}) == []


def test_a_model_that_guesses_is_named():
    (line,) = doubts({"teacher-1": result(50, *[0] * 9)})  # one class for all images
    assert line.startswith("teacher-1: no better than guessing (10.0 % of the images of each class on average, 10.0 %")
    assert "optimization.base_learning_rate" in line
    (line,) = doubts({"teacher-1": result(*[6, 5, 7, 5, 4, 6, 8, 5, 5, 6])})
    assert "11.4 %" in line
    assert doubts({"teacher-1": result(*[10] * 10)}) == []


def test_few_test_images_do_not_make_a_good_model_look_bad():
    assert doubts({"teacher-1": result(2, 2, 1, num_images=2)}) == []


def test_classes_without_test_images_do_not_count():
    counts = [[10, 0, 10], [9, 0, 8], [9, 0, 8]]
    assert doubts({"teacher-1": {"counts": counts}}) == []


def test_a_student_worse_than_its_best_teacher_is_named():
    results = {"teacher-1": result(40, 30, 20), "teacher-2": result(45, 40, 35), "student": result(40, 35, 30)}
    (line,) = doubts(results)
    assert line.startswith("student: worse than teacher-2 (70.0 % of the images of each class on average, teacher-2 80")
    assert "\n" not in line
    assert doubts(results | {"student": result(46, 40, 35)}) == []


def test_a_student_worse_than_a_teacher_of_another_run_is_named(tmp_path):
    (line,) = doubts({"student": result(30, 30, 30)}, {"runs/other/teacher-1": 70.0})
    assert line.startswith("student: worse than runs/other/teacher-1 (60.0 %")
    assert doubts({"student": result(30, 30, 30)}, {"runs/other/teacher-1": 50.0}) == []


def test_only_what_was_evaluated_on_the_same_images_is_compared(tmp_path):
    found = {}
    for name, training in {
        "same": {"shards": "12ab", "metrics": {"per_class_mean": 40}},
        "others": {"shards": "34cd", "metrics": {"per_class_mean": 40.0}},
        "unknown": {},
        "odd": {"shards": "12ab", "metrics": [1]},
    }.items():
        (tmp_path / name).mkdir()
        write_model_card(tmp_path / name, CARD.model_copy(update={"training": training}))
        found |= accuracies_elsewhere([tmp_path / name], "12ab")
    assert found == {str(tmp_path / "same"): 40.0}


@pytest.mark.slow
def test_the_closing_table_warns_one_line_each(digits_shards, tmp_path, capsys):
    optimization = {"steps": 10, "base_learning_rate": 5000.0}
    fit(digits_config(tmp_path / "run", digits_shards, optimization=optimization))
    said = capsys.readouterr().out
    assert said.count("no better than guessing") == 2
    lines = [line for line in said.splitlines() if line.startswith("warning: ")]
    assert [line.split(":")[1] for line in lines][:2] == [" teacher-1", " student"]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [f"warning: {line}" for line in summary["warnings"]] == lines
