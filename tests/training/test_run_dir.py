import csv
import json

import numpy as np

from cbd_fast.training.run_dir import RunDir


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
