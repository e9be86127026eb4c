import json
import subprocess
import sys

from cbd_fast.shards.manifest import read_manifest
from tests.helpers import REPOSITORY


def run(script, *arguments):
    command = [sys.executable, f"benchmarks/{script}.py", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)


def test_data_of_the_wanted_shape_and_all_loaders_on_it(image_folder, tmp_path):
    counts = tmp_path / "counts.json"
    counts.write_text(json.dumps({"counts": [40, 8, 1]}))
    data = tmp_path / "data"
    making = ("--images", image_folder, "--counts", counts, "--scale", 0.5, "--out", data)
    for _ in range(2):  # what is there stays
        done = run("make_data", *making)
        assert done.returncode == 0, done.stderr
    assert [len(list(path.iterdir())) for path in sorted((data / "images/train").iterdir())] == [20, 4, 1]
    done = run("make_data", *making, "--scale", 1)
    assert (done.returncode, "another scale" in done.stderr) == (2, True)
    (data / "images/train/class_00000/notes.txt").write_text("not an image")
    for name in ("shards", "shards_256"):
        assert read_manifest(data / name).splits["train"].class_counts == [20, 4, 1]

    out = tmp_path / "out.json"
    options = ("--rounds", 1, "--seconds", 0.2, "--image-size", 32, "--only", "cbd_fast torch,webdataset", "--cold")
    done = run("loader", "--images", data / "images/train", "--shards", data / "shards", *options, "--out", out)
    assert done.returncode == 0, done.stderr
    rows = {row["contestant"]: row for row in json.loads(out.read_text())["rows"]}
    ours = ("cbd_fast torch, shards", "cbd_fast torch, shards, 20% cached")
    assert list(rows) == ["torchvision decode_jpeg", "webdataset, shards", *ours]
    assert all(row["images/s"] > 0 and row["MB of memory"] > 50 for row in rows.values())
    for name in ours:  # a third each, within a draw or two of a short run
        assert 30 < float(rows[name]["smallest class, %"]) <= float(rows[name]["largest class, %"]) < 37
    assert float(rows["webdataset, shards"]["largest class, %"]) > 60


def test_bad_input(photo_shards, tmp_path):
    done = run("make_data", "--images", tmp_path, "--out", tmp_path / "out")
    assert (done.returncode, "holds no .jpg or .jpeg files" in done.stderr) == (2, True)
    done = run("loader", "--images", tmp_path, "--shards", photo_shards)
    assert (done.returncode, "not a folder of class folders" in done.stderr) == (2, True)
