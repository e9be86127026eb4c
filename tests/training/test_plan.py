import json
from pathlib import Path

import pytest
import torch

from cbd_fast.errors import InputError
from cbd_fast.shards.reader import ShardReader
from cbd_fast.training.checked_json import read_object
from cbd_fast.training.checkpoint import save_weights
from cbd_fast.training.finished import save_finished
from cbd_fast.training.model_folder import make_model_card, write_model_card
from cbd_fast.training.plan import build_setup, finished_results, models_to_train, plan_models
from cbd_fast.training.saved_state import Result
from tests.helpers import config_of


@pytest.fixture
def shards(photo_shards):
    return ShardReader(photo_shards, "train")


TWO_TEACHERS = {"teachers": [{"seed": 1}, {"seed": 1, "color_jitter": 1.0}]}


def planned_of(config, shards):
    return models_to_train(plan_models(config, shards), config.stages)


def finish(spec, config):
    """As the engine leaves a model that is trained."""
    model = build_setup(spec, config).model
    about = {"name": spec.name, "stage": spec.stage, "classes": list("abc"), "train_counts": list(spec.class_counts)}
    spec.folder.mkdir(parents=True, exist_ok=True)
    save_weights(spec.folder / "model.safetensors", model)
    write_model_card(spec.folder, make_model_card(model, config, **about, training={}))
    save_finished(spec.folder, Result(identity=spec.identity, metrics={}, seconds=0.0))


def test_both_stages(shards, tmp_path):
    config = config_of(tmp_path, stage_one=TWO_TEACHERS)
    first, second, student = plan_models(config, shards)
    assert [spec.name for spec in (first, second, student)] == ["teacher-1", "teacher-2", "student"]
    assert [spec.stage for spec in (first, second, student)] == ["teachers", "teachers", "student"]
    assert [spec.sampling for spec in (first, second, student)] == ["instance", "instance", "class_balanced"]
    assert [spec.augmentation.color_jitter for spec in (first, second, student)] == [0, 1, 0]
    assert len({spec.num_steps for spec in (first, second, student)}) == 1
    assert first.seed == second.seed != student.seed  # the paper's seeds 1 and 2 are of each kind of teacher


def test_one_stage_alone(shards, tmp_path):
    assert [spec.name for spec in planned_of(config_of(tmp_path, stages="teachers"), shards)] == ["teacher-1"]
    with pytest.raises(InputError, match="teacher-1 holds no finished teacher; run stages=teachers"):
        planned_of(config_of(tmp_path, stages="student"), shards)


def test_a_finished_teacher_is_used(shards, tmp_path):
    config = config_of(tmp_path)
    teacher, student = plan_models(config, shards)
    assert not teacher.is_finished
    finish(teacher, config)
    assert teacher.is_finished
    stage = build_setup(student, config_of(tmp_path, stages="student"))
    trained = build_setup(teacher, config).model
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(stage.teachers(images), trained.eval()(images).features)
    assert stage.model.projection is None
    assert not torch.equal(stage.model.weight, trained.weight)


def test_several_teachers_make_the_student_project(shards, tmp_path):
    config = config_of(tmp_path, stage_one=TWO_TEACHERS)
    *teachers, student = plan_models(config, shards)
    for teacher in teachers:
        finish(teacher, config)
    stage = build_setup(student, config)
    assert stage.model.projection.out_features == stage.teachers.feature_dim == 256


def test_weights_depend_on_the_seed_alone(shards, tmp_path):
    def weights(**settings):
        config = config_of(tmp_path, **settings)
        return build_setup(plan_models(config, shards)[0], config).model.state_dict()

    first, again, other = weights(), weights(), weights(seed=1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["weight"], other["weight"])


def test_other_settings_in_the_same_folder_are_refused_by_name(shards, tmp_path):
    config = config_of(tmp_path)
    teacher, student = plan_models(config, shards)
    finish(teacher, config)
    changed = config_of(tmp_path, optimization={"steps": 9, "global_batch": 6})
    with pytest.raises(
        InputError, match=r"teacher-1 was trained with other settings \(optimization.steps was 5, now 9\)"
    ):
        planned_of(changed, shards)
    # the student's settings are no business of the teacher
    planned_of(config_of(tmp_path, stage_two={"alpha": 0.1}), shards)
    finish(student, config)
    with pytest.raises(
        InputError, match=r"student was trained with other settings \(stage_two.alpha was 0.4, now 0.1\)"
    ):
        planned_of(config_of(tmp_path, stage_two={"alpha": 0.1}), shards)
    # nor does stage one alone mind another student, which is then not reported
    other = config_of(tmp_path, stage_two={"alpha": 0.1}, stages="teachers")
    assert [spec.name for spec in planned_of(other, shards)] == ["teacher-1"]
    assert list(finished_results(plan_models(other, shards))) == ["teacher-1"]
    assert list(finished_results(plan_models(config, shards))) == ["teacher-1", "student"]


def test_a_setting_that_did_not_exist_yet_had_its_default(shards, tmp_path):
    config = config_of(tmp_path)
    teacher, _ = plan_models(config, shards)
    finish(teacher, config)
    path = teacher.folder / "result.json"
    result = read_object(path, "")
    del result["identity"]["data.augmentation.flip"]
    path.write_text(json.dumps(result))
    assert [spec.name for spec in planned_of(config, shards)] == ["teacher-1", "student"]
    assert list(finished_results(plan_models(config, shards))) == ["teacher-1"]
    data = {"augmentation": {"flip": False}}
    with pytest.raises(InputError, match=r"data\.augmentation\.flip was True, now False"):
        planned_of(config_of(tmp_path, data=data), shards)


def test_other_images_in_the_same_folder_are_refused(shards, tmp_path):
    config = config_of(tmp_path)
    teacher, _ = plan_models(config, shards)
    finish(teacher, config)
    result = Path(teacher.folder) / "result.json"
    changed = json.dumps(read_object(result, "")).replace(shards.manifest.fingerprint, "00000000")
    result.write_text(changed)
    with pytest.raises(InputError, match="images was '00000000'"):
        planned_of(config, shards)
    assert json.loads(result.read_text())["identity"]["images"] == "00000000"


def test_without_teachers_the_student_learns_from_labels_alone(shards, tmp_path):
    config = config_of(tmp_path, stage_one={"teachers": []}, stage_two={"alpha": 0.0})
    (student,) = plan_models(config, shards)
    stage = build_setup(student, config)
    assert stage.teachers is None
    output = stage.model(torch.rand(2, 3, 32, 32))
    assert set(stage.objective(output, torch.tensor([0, 1]), None)) == {"loss", "classification_loss"}
