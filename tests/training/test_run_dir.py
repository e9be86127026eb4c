import csv
import json
from dataclasses import dataclass

import numpy as np
import pytest

from cbd_fast.training.run_dir import RunDir, looks_like_run


def test_rewind_forgets_later_steps_of_one_model(tmp_path):
    run_dir = RunDir(tmp_path, is_main=True)
    for model, step in (("teacher-1", 5), ("teacher-1", 10), ("student", 5)):
        run_dir.log({"model": model, "step": step})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"model": "teach')  # a kill cut this line off
    run_dir.rewind("teacher-1", 5)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"model": "teacher-1", "step": 5}, {"model": "student", "step": 5}]


def test_other_processes_write_only_their_own_files(tmp_path):
    run_dir = RunDir(tmp_path, is_main=False, rank=1)
    run_dir.log({"model": "student", "step": 1})
    run_dir.rewind("student", 0)
    run_dir.summarize({})
    run_dir.write_per_class(["a"], [1], {})
    run_dir.bad_image("train-000000.tar:1.jpg", "truncated")
    assert [path.name for path in tmp_path.iterdir()] == ["bad_images.rank-1.jsonl"]


def test_listeners_are_told_on_the_main_process(tmp_path):
    told = []
    for is_main in (False, True):
        run_dir = RunDir(tmp_path, is_main=is_main)
        run_dir.add_listener(told.append)
        run_dir.log({"model": "student", "step": 1 + is_main})
    assert told == [{"model": "student", "step": 2}]


def test_per_class(tmp_path):
    counts = {
        "teacher-1": np.array([[4, 2, 0], [1, 2, 0], [4, 2, 0]]),
        "student": np.array([[4, 2, 0], [2, 1, 0], [4, 2, 0]]),
    }
    RunDir(tmp_path, is_main=True).write_per_class(["cat, black", "dog", "emu"], [150, 20, 3], counts)
    with open(tmp_path / "per_class.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["label", "class", "train_images", "group", "test_images", "teacher-1", "student"],
        ["0", "cat, black", "150", "many", "4", "25.00", "50.00"],
        ["1", "dog", "20", "medium", "2", "100.00", "50.00"],
        ["2", "emu", "3", "few", "0", "", ""],
    ]


@dataclass
class Read:
    """What a step read, in place of a whole plan."""

    indices: np.ndarray


def steps_in(path):
    return [(line["model"], line["step"]) for line in map(json.loads, path.read_text().splitlines())]


def test_rewind_forgets_what_all_processes_read_later(tmp_path):
    for rank in (0, 1):
        run_dir = RunDir(tmp_path, is_main=not rank, rank=rank)
        for model, step in (("teacher-1", 4), ("teacher-1", 5), ("student", 9)):  # numbered from 0
            run_dir.log_batch(model, step, Read(np.array([step])))
        with open(tmp_path / f"batches.rank-{rank}.jsonl", "a") as file:
            file.write('{"model": "student", "step": 9')  # a kill cut this line off
    (tmp_path / "batches.rank-x.jsonl").write_text("mine")
    RunDir(tmp_path, is_main=True).rewind("teacher-1", 5)
    for rank in (0, 1):
        assert steps_in(tmp_path / f"batches.rank-{rank}.jsonl") == [("teacher-1", 4), ("student", 9)]
    assert (tmp_path / "batches.rank-x.jsonl").read_text() == "mine"


def test_a_bad_image_is_listed_once_however_often_the_run_goes_on(tmp_path):
    path = tmp_path / "bad_images.rank-0.jsonl"
    for image in ("a", "b", "a"):
        run_dir = RunDir(tmp_path, is_main=True)
        run_dir.rewind("student", 0)
        for name in (image, "c", image):
            run_dir.bad_image(name, "truncated")
        with open(path, "a") as file:
            file.write('{"image": "cut')
    RunDir(tmp_path, is_main=True).rewind("student", 0)
    assert [json.loads(line)["image"] for line in path.read_text().splitlines()] == ["a", "c", "b"]


def test_lines_that_are_no_records_of_ours_are_no_obstacle(tmp_path):
    lines = [b'{"model": "a", "step": 3}\n', b"\xff\xfe\n", b"[1]\n", b"[" * 10**5 + b"\n", b'{"step": "x"}\n', b"{}\n"]
    (tmp_path / "metrics.jsonl").write_bytes(b"".join(lines))
    RunDir(tmp_path, is_main=True).rewind("a", 5)
    assert (tmp_path / "metrics.jsonl").read_bytes() == lines[0] + lines[4] + lines[5]


def test_a_folder_with_a_log_or_models_of_ours_is_a_run(tmp_path):
    assert not looks_like_run(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("mine\n")
    assert not looks_like_run(tmp_path)
    (tmp_path / "student" / "checkpoint-00000005").mkdir(parents=True)
    assert not looks_like_run(tmp_path)
    (tmp_path / "student" / "checkpoint-00000005" / "state.json").write_text("damaged")
    assert looks_like_run(tmp_path)


def test_names_in_the_table_of_classes_are_printable(tmp_path):
    counts = {"student": np.array([[4], [1], [4]])}
    RunDir(tmp_path, is_main=True).write_per_class(["cat\x1b[31m\n"], [150], counts)
    with open(tmp_path / "per_class.csv", newline="") as file:
        assert list(csv.reader(file))[1][1] == r"cat\x1b[31m\n"


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as raised:
        RunDir(tmp_path, is_main=True).log({"step": 1})
    assert raised.value.filename == str(tmp_path / "metrics.jsonl")


def test_rewind_forgets_evaluations_that_are_done_again(tmp_path):
    run_dir = RunDir(tmp_path, is_main=True)
    for step, split in ((4, "val"), (6, None), (6, "val"), (8, "val"), (8, "test")):
        run_dir.log({"model": "student", "step": step} | ({"split": split} if split else {}))
    run_dir.rewind("student", 8, {"val": 4})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"model": "student", "step": 4, "split": "val"}, {"model": "student", "step": 6}]
