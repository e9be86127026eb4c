import json
import subprocess
import sys

from tests.helpers import REPOSITORY


def benchmark(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "benchmarks/accuracy.py", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


STUDENT = {"stage_two.sampling": "class_balanced", "stage_two.seed": 0, "stage_two.alpha": 0.4}


def write_result(folder, top1, *, seed, teachers, few=1.0, **settings):
    """A finished model."""
    identity = {"seed": seed, "model.backbone": "resnet32", "stage_one.sampling": "instance"}
    identity |= {"stage_one.teachers": teachers} | settings
    metrics = {"top1": top1, "per_class_mean": top1, "many": 3.0, "medium": 2.0, "few": few}
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({"identity": identity, "metrics": metrics, "seconds": 5400.0}))


def test_models_that_differ_in_their_seeds_are_one_row(tmp_path):
    for seed in (0, 1):
        run, teachers = tmp_path / f"cbd_{seed}", [{"seed": number, "color_jitter": 0.0} for number in (1, 2)]
        for number, teacher in enumerate(teachers, 1):
            write_result(run / f"teacher-{number}", 30.0 + 4 * seed + number, seed=seed, teachers=[teacher])
        write_result(run / "student", 40.0 + 2 * seed, seed=seed, teachers=teachers, **STUDENT)
    copied = tmp_path / "copied"
    write_result(copied / "teacher-1", 31.0, seed=0, teachers=[{"seed": 1, "color_jitter": 0.0}])
    write_result(copied / "teacher-2", 36.0, seed=0, teachers=[{"seed": 1, "color_jitter": 1.0}])
    write_result(copied / "student", 35.0, seed=0, teachers=[], few=None, **STUDENT | {"stage_two.alpha": 0})
    done = benchmark(tmp_path / "cbd_0", tmp_path / "cbd_1", copied, "--out", tmp_path / "rows.json")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    found = {row["model"]: (row["seeds"], row["top1"], row["few"]) for row in rows}
    assert found == {
        "resnet32, teacher, instance sampling": (4, "33.50 ± 2.38", "1.00 ± 0.00"),  # 31, 32, 35, 36
        "resnet32, teacher, instance sampling, colour jitter 1": (1, "36.00", "1.00"),
        "resnet32, student of 2 teachers, class_balanced sampling": (2, "41.00 ± 1.41", "1.00 ± 0.00"),
        "resnet32, class_balanced sampling, no distillation": (1, "35.00", "-"),
    }
    assert {row["time each"] for row in rows} == {"1:30:00"}
    assert "41.00 ± 1.41" in done.stdout


def test_rows_of_the_same_kind_say_in_what_they_differ(tmp_path):
    for decay in (1e-4, 5e-4):
        settings = {"seed": 0, "teachers": [{"seed": 1, "color_jitter": 0.0}], "optimization.weight_decay": decay}
        write_result(tmp_path / str(decay) / "teacher-1", 30.0, **settings)
    done = benchmark(tmp_path / "0.0001", tmp_path / "0.0005", "--out", tmp_path / "rows.json")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    kind = "resnet32, teacher, instance sampling; optimization.weight_decay"
    assert [row["model"] for row in rows] == [f"{kind} 0.0001", f"{kind} 0.0005"]


def test_a_folder_without_a_finished_model_is_refused(tmp_path):
    done = benchmark(tmp_path)
    assert done.returncode == 2
    assert f"{tmp_path}: holds no finished model" in done.stderr
