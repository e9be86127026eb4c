import json
import shutil

import pytest
import torch

from cbd_fast.errors import InputError
from cbd_fast.training.checked_json import read_object
from cbd_fast.training.checkpoint import save_checkpoint, save_weights
from cbd_fast.training.finished import (
    has_result,
    is_result,
    read_finished,
    read_result,
    remove_leftovers,
    save_finished,
)
from cbd_fast.training.saved_state import Result, State

RESULT = Result(
    identity={"images": "12ab"}, metrics={"top1": 50.0, "few": None}, seconds=1.5, counts=((2,), (1,), (2,))
)
FILES = ["config.json", "model.safetensors", "result.json"]


@pytest.fixture
def model():
    return torch.nn.BatchNorm1d(4)


@pytest.fixture
def folder(tmp_path, model):
    """A finished model, with what is written on the way to it."""
    save_checkpoint(tmp_path, model, torch.optim.SGD(model.parameters()), State(step=5, identity={"images": "12ab"}))
    save_weights(tmp_path / "best-00000003.safetensors", model)
    save_weights(tmp_path / "model.safetensors", model)
    (tmp_path / "config.json").write_text("{}")
    save_finished(tmp_path, RESULT)
    return tmp_path


def test_a_finished_model_has_its_files_and_no_others(folder):
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert read_finished(folder, reads_all=True).model_copy(update={"files": {}}) == RESULT
    assert list(read_result(folder).files) == ["model.safetensors", "config.json"]
    assert has_result(folder)
    assert is_result(folder)


def test_nothing_is_finished_without_a_result(tmp_path):
    assert read_finished(tmp_path) is None
    assert not has_result(tmp_path)
    assert not is_result(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_model_without_a_file_or_with_half_of_one_does_not_pass(folder, name):
    path, whole = folder / name, (folder / name).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=rf"{name}: damaged .*; copy it there again, or remove {folder} to train it"):
        read_finished(folder)
    path.unlink()
    with pytest.raises(InputError, match=rf"{name}: missing, though the model is finished; copy it there again, or"):
        read_finished(folder)


def test_every_flipped_bit_is_noticed(folder):
    for name in FILES:
        whole = (folder / name).read_bytes()
        for position in range(0, len(whole), 7):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << position % 8
            (folder / name).write_bytes(damaged)
            with pytest.raises(InputError, match=rf"{name}: "):
                read_finished(folder, reads_all=True)
        (folder / name).write_bytes(whole)
    read_finished(folder, reads_all=True)


def test_what_a_kill_has_left_goes_and_what_is_not_ours_stays(folder, model):
    save_checkpoint(folder, model, torch.optim.SGD(model.parameters()), State(step=5, identity={"images": "12ab"}))
    save_weights(folder / "best-00000003.safetensors", model)
    (folder / "checkpoint-00000009.cbd_fast-partial").mkdir()
    (folder / "checkpoint-00000009.cbd_fast-partial" / "model.safetensors").write_bytes(b"half")
    (folder / "best-00000004.safetensors.cbd_fast-partial").write_bytes(b"half")
    (folder / "result.json.cbd_fast-partial").write_bytes(b"half")
    theirs = ["best-of-all.safetensors", "best-3.safetensors", "notes.txt", "mine.cbd_fast-partial"]
    for name in theirs:
        (folder / name).write_text("mine")
    shutil.copytree(folder / "checkpoint-00000005", folder / "checkpoint-old")
    remove_leftovers(folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, *theirs, "checkpoint-old"])


@pytest.mark.parametrize(
    "change", [{"metrics": 3}, {"metrics": None}, {"counts": "x"}, {"seconds": -1}, {"identity": []}, {"scaler": None}]
)
def test_results_of_other_types_are_refused_in_one_line(folder, change):
    path = folder / "result.json"
    path.write_text(json.dumps(read_object(path, "") | change))
    with pytest.raises(InputError, match=rf"result\.json: damaged .*; remove {folder} to train it again"):
        read_finished(folder)


def test_files_that_a_result_names_elsewhere_are_not_read(folder):
    path = folder / "result.json"
    values = read_object(path, "")
    values["files"]["/dev/zero"] = values["files"]["../../x"] = {"num_bytes": 0, "sha256": "0" * 64}
    path.write_text(json.dumps(values))
    assert read_finished(folder, reads_all=True).metrics == RESULT.metrics
