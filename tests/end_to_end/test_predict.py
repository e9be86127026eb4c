"""``cbd-fast predict`` as users type it."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from cbd_fast.cli.main import main
from cbd_fast.cli.predict import find_images
from cbd_fast.registry import BACKBONES
from cbd_fast.shards.reader import ShardReader
from cbd_fast.training.models import build_model
from tests.helpers import digits_config_file

COMMAND = [sys.executable, "-m", "cbd_fast.cli.main"]
ON_CPU = ["--device", "cpu"]
CLASSES = ["ant", "bee", "Käfer"]


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def cbd_fast(*arguments, **options):
    """The command in a process of its own."""
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, timeout=300, **options)


@pytest.fixture
def predict(capsys):
    """The command in this process, which saves the seconds that PyTorch takes to import."""

    def run(*arguments) -> Done:
        with pytest.raises(SystemExit) as ended:
            main(["predict", *map(str, arguments)])
        return Done(ended.value.code, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A model folder as another machine could have written it: nothing but its two files."""
    folder = tmp_path_factory.mktemp("downloaded") / "student"
    folder.mkdir()
    network = build_model("small_convnet", 3)
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, folder / "model.safetensors")
    card = {
        "format": "cbd_fast model",
        "format_version": 2,
        "name": "student",
        "stage": "student",
        "backbone": "small_convnet",
        "num_classes": 3,
        "feature_dim": 128,
        "projected_dim": None,
        "classes": CLASSES,
        "train_counts": [12, 5, 2],
        "image_size": 32,
        "preprocessing": {"crop": "center", "center_fraction": 0.875, "mean": None, "std": None},
        "mixed_precision": "no",
        "training": {},
    }
    (folder / "config.json").write_text(json.dumps(card))
    return folder


@pytest.fixture
def images(image_folder, tmp_path) -> Path:
    """A folder with images, some below, and files that are none."""
    root = tmp_path / "images"
    shutil.copytree(image_folder / "test", root / "b below")
    shutil.copy(image_folder / "train" / "ant" / "0.jpg", root / 'a [bold], "quoted".JPG')
    (root / "notes.txt").write_text("no image")
    (root / ".hidden.jpg").write_text("no image")
    (root / ".thumbnails").mkdir()
    (root / ".thumbnails" / "0.jpg").write_text("no image")
    (root / "b below" / "ant" / "up").symlink_to(root)  # which is not followed for ever
    return root


def in_order(images: Path) -> list[str]:
    below = sorted(map(str, (images / "b below").glob("*/*.*")))
    return [str(images / 'a [bold], "quoted".JPG'), *below]


def test_all_formats_say_the_same(predict, model, images, tmp_path, monkeypatch):
    elsewhere = tmp_path / "working folder"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    outputs = {}
    for output_format in ("table", "csv", "jsonl"):
        done = predict(model, images, "--format", output_format, "--top", 2, *ON_CPU)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        outputs[output_format] = done.stdout
    assert not list(elsewhere.iterdir())

    records = [json.loads(line) for line in outputs["jsonl"].splitlines()]
    assert [record["image"] for record in records] == in_order(images)
    guesses = []
    for record in records:
        assert set(record) == {"image", "predictions"}
        assert len(record["predictions"]) == 2
        for rank, guess in enumerate(record["predictions"], 1):
            assert guess["class"] == CLASSES[guess["label"]]
            guesses.append((record["image"], rank, guess["label"], guess["class"], guess["probability"]))
        assert 1 >= record["predictions"][0]["probability"] >= record["predictions"][1]["probability"] >= 0

    header, *lines = csv.reader(io.StringIO(outputs["csv"]))
    assert header == ["image", "rank", "label", "class", "probability"]
    assert [(image, int(rank), int(label), name) for image, rank, label, name, _ in lines] == [
        guess[:4] for guess in guesses
    ]
    np.testing.assert_allclose([float(line[4]) for line in lines], [guess[4] for guess in guesses], atol=1e-6)

    table = outputs["table"]
    assert "\x1b" not in table
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in table.splitlines() if "│" in line]
    assert [name for _, name, _ in cells if name] == [guess[3] for guess in guesses]
    assert [chance for _, _, chance in cells if chance] == [f"{100 * guess[4]:.1f}" for guess in guesses]
    shown = "".join(name for name, _, _ in cells)  # long names go on in the next line
    assert shown.replace(" ", "") == "".join(in_order(images)).replace(" ", "")


@pytest.mark.parametrize("name", [".", "../images", "link/"])
def test_folders_are_searched_whatever_they_are_called(images, name, monkeypatch):
    monkeypatch.chdir(images)
    (images / "link").symlink_to(images.with_name("elsewhere"))
    images.with_name("elsewhere").mkdir()
    shutil.copy(in_order(images)[0], images.parent / "elsewhere" / "0.jpeg")
    paths = list(find_images([name]))
    assert set(map(os.path.realpath, paths)) == {
        str(images.parent / "elsewhere" / "0.jpeg"),
        *(in_order(images) if name != "link/" else ()),
    }
    assert paths == sorted(paths)
    assert all(path.startswith(name) for path in paths)


def test_order_batch_and_number_of_guesses(predict, model, images):
    paths = in_order(images)[::-1]
    expected = predict(model, *paths, "--format", "csv", *ON_CPU)
    for options in (["--batch", 1], ["--batch", 1000], ["--top", 50]):  # of three classes
        done = predict(*options, model, *paths, "--format", "csv", *ON_CPU)
        assert done.returncode == 0
        ours, theirs = (list(csv.reader(io.StringIO(output))) for output in (done.stdout, expected.stdout))
        assert [line[:4] for line in ours] == [line[:4] for line in theirs]
    assert len(theirs) == 1 + 7 * 3
    assert [line[0] for line in theirs[1::3]] == paths


def test_what_cannot_be_read_is_told_and_the_rest_predicted(predict, model, images):
    bad, missing = images / "bad\nname.png", images / "missing.jpg"
    bad.write_bytes(b"no image")
    good = in_order(images)
    named = [good[0], bad, missing, *good[1:], images / "notes.txt"]  # a file that is named is tried
    for output_format, num_lines in (("csv", 1 + 7 * 3), ("jsonl", 10), ("table", None)):
        done = predict(model, *named, "--format", output_format, "--batch", 2, *ON_CPU)
        assert done.returncode == 1
        assert done.stderr.splitlines() == [
            f"{images}/bad\\nname.png: not an image, or of an unknown format",
            f"{missing}: No such file or directory",
            f"{images / 'notes.txt'}: not an image, or of an unknown format",
            "failed: 3 of 10 images cannot be read",
        ]
        assert num_lines is None or len(done.stdout.splitlines()) == num_lines
        if output_format == "jsonl":
            records = [json.loads(line) for line in done.stdout.splitlines()]
            assert [record["image"] for record in records] == list(map(str, named))
            assert [name for name, record in zip(named, records, strict=True) if "error" in record] == [
                bad,
                missing,
                images / "notes.txt",
            ]


def test_bad_input_ends_with_2(predict, model, images, tmp_path):
    (tmp_path / "empty").mkdir()
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "config.json").write_text('{"model_type": "resnet"}')
    cases = [
        ([tmp_path / "nowhere", images], "nowhere: no such folder"),
        ([model.parent, images], f"a folder of models; name one of them: {model}"),
        ([foreign, images], "this version of cbd_fast reads"),
        ([model, tmp_path / "empty"], "empty: no image files there"),
        ([model, images, "--top", "0"], "--top 0: must be at least 1"),
        ([model, images, "--batch", "-1"], "--batch -1: must be at least 1"),
        ([model, images, "--device", "abacus"], "device='abacus'"),
        ([model, images, "--plugin", tmp_path / "nowhere.py"], "nowhere.py: must be a Python file"),
    ]
    for arguments, message in cases:
        done = predict(*arguments)
        assert done.returncode == 2, arguments
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith("error: ")
        assert message in done.stderr
    for arguments in ([], [model], [model, images, "--format", "xml"]):
        done = predict(*arguments)
        assert done.returncode == 2
        assert done.stderr.startswith("usage: cbd-fast predict ")


@pytest.mark.parametrize("output_format", ["table", "jsonl"])
def test_a_reader_that_stops_early_is_no_error(model, images, output_format):
    path = in_order(images)[0]
    command = [*COMMAND, "predict", str(model), *[path] * 2000, "--format", output_format, *ON_CPU]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=120) == 0


def test_a_full_disk_is_told(model, images):
    with open("/dev/full", "w") as full:
        command = [*COMMAND, "predict", str(model), str(images), "--format", "csv", *ON_CPU]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr == "failed: the output cannot be written (No space left on device)\n"


@pytest.mark.parametrize(
    ("encoding", "output_format"), [("utf-8", "csv"), ("ascii", "csv"), ("ascii", "table"), ("ascii", "jsonl")]
)
def test_names_that_are_no_text(model, images, encoding, output_format):
    name = os.fsencode(images) + b"/caf\xe9.jpg"
    shutil.copy(os.fsencode(in_order(images)[0]), name)
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = cbd_fast("predict", model, os.fsdecode(name), "--format", output_format, *ON_CPU, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    if output_format == "jsonl":
        record = json.loads(done.stdout)
        assert os.fsencode(record["image"]) == name
        assert {guess["class"] for guess in record["predictions"]} == set(CLASSES)
    elif output_format == "csv":
        shown = name if encoding == "utf-8" else name.replace(b"\xe9", rb"\udce9")
        assert [line.startswith(shown) for line in done.stdout.splitlines()] == [False, True, True, True]


def test_a_model_with_a_backbone_of_a_plugin(predict, model, images, tmp_path, monkeypatch):
    monkeypatch.setattr(BACKBONES, "_entries", dict(BACKBONES))  # as it was, afterwards
    own = shutil.copytree(model, tmp_path / "own")
    card = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps(card | {"backbone": "mine"}))
    done = predict(own, images, *ON_CPU)
    assert done.returncode == 2
    assert "config.json: backbone: must be one of" in done.stderr
    assert "--plugin FILE" in done.stderr
    plugin = tmp_path / "plugin.py"
    plugin.write_text(
        "from cbd_fast import BACKBONES\n\n@BACKBONES.register('mine')\ndef mine():\n"
        "    return BACKBONES['small_convnet']()\n"
    )
    done = predict(own, images, "--plugin", plugin, "--format", "csv", *ON_CPU)
    assert done.returncode == 0, done.stderr
    assert done.stdout == predict(model, images, "--format", "csv", *ON_CPU).stdout


def test_a_trained_model_answers_as_its_evaluation(predict, digits_shards, tmp_path):
    """Shards, a run of both stages, and the predictions of the student, copied elsewhere, on the test images."""
    stage_one, optimization = {"teachers": [{"seed": 1}, {"seed": 2}]}, {"steps": 40, "global_batch": 32}
    config = digits_config_file(tmp_path, digits_shards, optimization=optimization, stage_one=stage_one)
    done = cbd_fast("train", "--config", config, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stderr
    reader = ShardReader(digits_shards, "test")
    labels = reader.index.labels(np.arange(len(reader))).tolist()
    (tmp_path / "images").mkdir()
    for index in range(len(reader)):
        (tmp_path / "images" / f"{index:04d}.png").write_bytes(reader.read(index).tobytes())
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    for name, expected in (("teacher-2", summary["teachers"][1]), ("student", summary["student"])):
        copy = shutil.copytree(tmp_path / "run" / name, tmp_path / "elsewhere" / name)
        done = predict(copy, tmp_path / "images", "--format", "jsonl", *ON_CPU)
        assert done.returncode == 0, done.stderr
        guesses = [[guess["label"] for guess in json.loads(line)["predictions"]] for line in done.stdout.splitlines()]
        for metric, num in (("top1", 1), ("top5", 5)):
            hits = [label in guess[:num] for label, guess in zip(labels, guesses, strict=True)]
            assert 100 * np.mean(hits) == pytest.approx(expected[metric], abs=1e-9)
        card = json.loads((copy / "config.json").read_text())
        assert (card["name"], card["classes"]) == (name, reader.manifest.classes)
        assert card["training"]["metrics"] == expected
    done = predict(tmp_path / "run", tmp_path / "images", *ON_CPU)
    assert done.returncode == 2
    assert "name one of them" in done.stderr
