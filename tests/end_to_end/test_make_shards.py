"""make_shards and index_shards as users type them: every source, and bad input."""

import json
import os
import pickle
import re
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import webdataset
from PIL import Image

from cbd_fast import Loader
from cbd_fast.shards.manifest import read_manifest
from tests.helpers import REPOSITORY, check_by_stock_readers, make_shards, run, write


def test_folder(image_folder, tmp_path):
    out = tmp_path / "shards"
    command = ["folder", "--train", image_folder / "train", "--test", image_folder / "test", "--out", out]
    done = make_shards(*command, "--imbalance", "4", "--seed", "3", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert re.search(r"train *│ *3 │ *19 │ *0 │ *0 │ *3 │", done.stdout)
    assert "\x1b" not in done.stdout
    assert read_manifest(out).splits["train"].class_counts == [12, 5, 2]  # 12, 6 and 3 are wanted
    check_by_stock_readers(out, {"train": [0] * 12 + [1] * 5 + [2] * 2, "test": [0, 0, 1, 1, 2, 2]})
    again = make_shards(*command, "--imbalance", "4", "--seed", "3", "--workers", "1")
    assert again.returncode == 0
    assert "already there, unchanged" in " ".join(again.stdout.split())
    other = make_shards(*command, "--imbalance", "2", "--seed", "3")
    assert other.returncode == 2
    assert "already holds other shards (imbalance 4.0 there, 2.0 asked for)" in other.stderr


def test_long_tail_step_and_validation_of_a_folder(pieces, tmp_path):
    for name in "abcd":
        for number in range(8):
            write(tmp_path / "in" / name / f"{number}.jpg", pieces[number])
    command = ["folder", "--train", tmp_path / "in", "--test", tmp_path / "in", "--imbalance", "4"]
    done = make_shards(*command, "--imbalance-kind", "step", "--val-per-class", "3", "--out", tmp_path / "step")
    assert done.returncode == 0, done.stderr
    splits = read_manifest(tmp_path / "step").splits
    assert [splits[name].class_counts for name in ("train", "val")] == [[8, 8, 2, 2], [0, 0, 3, 3]]
    assert "2 classes keep too many for training and have fewer, such as 'a' 0, 'b' 0" in done.stdout
    alone = make_shards("folder", "--train", tmp_path / "in", "--val-per-class", "3", "--out", tmp_path / "no")
    assert alone.returncode == 2
    assert "it needs --imbalance" in alone.stderr


def test_list(pieces, tmp_path):
    """The layout of ImageNet-LT: val is from ImageNet's train folder, test is its val folder."""
    lists = {"train": [], "val": [], "test": []}
    for number, piece in enumerate(pieces):
        label, split = number % 2, ("train", "train", "train", "train", "train", "train", "val", "test")[number]
        folder = "val" if split == "test" else "train"
        name = f"{folder}/n0144076{label}/n0144076{label}_{number}.JPEG"
        write(tmp_path / "imagenet" / name, piece)
        lists[split].append(f"{name} {label}\n")
    command = ["list", "--images", tmp_path / "imagenet"]
    for split, lines in lists.items():
        (tmp_path / f"ImageNet_LT_{split}.txt").write_text("".join(lines))
        command += [f"--{split}", tmp_path / f"ImageNet_LT_{split}.txt"]
    done = make_shards(*command, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert read_manifest(tmp_path / "out").classes == ["n01440760", "n01440761"]
    check_by_stock_readers(tmp_path / "out", {"train": [0, 0, 0, 1, 1, 1], "val": [0], "test": [1]})

    preset = make_shards(*command, "--preset", "imagenet-lt", "--out", tmp_path / "preset")
    assert preset.returncode == 2
    for part in ("train images: 6, published 115,846", "classes: 2, published 1,000", "another year of ImageNet"):
        assert part in preset.stderr
    assert not list(tmp_path.glob("preset*"))


def test_inaturalist(pieces, tmp_path):
    names = {"train": [], "val": []}
    for number, piece in enumerate(pieces):
        category, split = (3, 7)[number % 2], "val" if number > 5 else "train"
        name = f"train_val2018/Aves/{category}/{number:032x}.jpg"
        write(tmp_path / name, piece)
        names[split].append((number, name, category))
    for split, images in names.items():
        annotations = {
            "info": {"year": 2018},
            "images": [{"id": i, "file_name": n, "width": 9, "height": 9, "license": 0} for i, n, _ in images],
            "licenses": [],
            "annotations": [{"id": i, "image_id": i, "category_id": c} for i, _, c in images],
            "categories": [{"id": c, "name": f"species {c}", "supercategory": "Aves"} for c in (3, 7)],
        }
        (tmp_path / f"{split}2018.json").write_text(json.dumps(annotations))
    command = ["inaturalist", "--images", tmp_path, "--train", tmp_path / "train2018.json"]
    done = make_shards(*command, "--val", tmp_path / "val2018.json", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "test: the published val" in done.stdout
    assert read_manifest(tmp_path / "out").classes == ["species 3", "species 7"]
    check_by_stock_readers(tmp_path / "out", {"train": [0, 0, 0, 1, 1, 1], "test": [0, 1]})


def test_tiny_imagenet(pieces, tmp_path):
    root = tmp_path / "tiny-imagenet-200"
    for number, piece in enumerate(pieces[:6]):
        name = ("n02", "n01")[number % 2]
        write(root / "train" / name / "images" / f"{name}_{number}.JPEG", piece)
        (root / "train" / name / f"{name}_boxes.txt").write_text(f"{name}_{number}.JPEG\t0\t0\t9\t9\n")
    for number in (0, 1):
        write(root / "val" / "images" / f"val_{number}.JPEG", pieces[6 + number])
    (root / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn01\t0\t0\t9\t9\nval_1.JPEG\tn01\t0\t0\t9\t9\n")
    write(root / "test" / "images" / "test_0.JPEG", pieces[0])
    (root / "wnids.txt").write_text("n02\nn01\n")
    (root / "words.txt").write_text("n01\tgoldfish\nn02\tfrog\n")
    done = make_shards("tiny-imagenet", root, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(tmp_path / "out")
    assert manifest.classes == ["n02 frog", "n01 goldfish"]
    assert "test: the published val" in manifest.notes[0]
    check_by_stock_readers(tmp_path / "out", {"train": [0, 0, 0, 1, 1, 1], "test": [1, 1]})


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
def test_cifar(kind, tmp_path):
    """The official archives' layout with few images; their published checksums are replaced, so that they fit."""
    rng = np.random.default_rng(0)
    folder = tmp_path / {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}[kind]
    files = ["data_batch_1", "data_batch_2", "test_batch"] if kind == "cifar10" else ["train", "test"]
    key, meta = ("labels", "batches.meta") if kind == "cifar10" else ("fine_labels", "meta")
    data = {name: rng.integers(0, 256, (4, 3072), np.uint8) for name in files}
    for name in files:
        write(folder / name, pickle.dumps({"data": data[name], key: [0, 1, 1, 2]}))
    names_key = "label_names" if kind == "cifar10" else "fine_label_names"
    write(folder / meta, pickle.dumps({names_key: ["ant", "bee", "cat"]}))
    script = f"""
import sys
from hashlib import md5
from pathlib import Path
from torchvision import datasets
sys.path.insert(0, "tools")
import make_shards
from cbd_fast.cli.command import run_command

kind = datasets.{kind.upper()}
digest = lambda name: md5(Path({str(folder)!r}, name).read_bytes()).hexdigest()
kind.train_list = [[name, digest(name)] for name in {files[:-1]!r}]
kind.test_list = [[name, digest(name)] for name in {files[-1:]!r}]
kind.meta = kind.meta | {{"md5": digest({meta!r})}}
if __name__ == "__main__":
    run_command(make_shards.main)
"""
    (tmp_path / "script.py").write_text(script)
    command = [sys.executable, tmp_path / "script.py", kind, tmp_path, "--out", tmp_path / "out"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    train = [0, 1, 1, 2] * (len(files) - 1)
    check_by_stock_readers(tmp_path / "out", {"train": sorted(train), "test": [0, 1, 1, 2]})
    with tarfile.open(tmp_path / "out" / "test-000000.tar") as tar:
        stored = {np.asarray(Image.open(tar.extractfile(m))).tobytes() for m in tar if m.name.endswith(".png")}
    assert stored == {row.reshape(3, 32, 32).transpose(1, 2, 0).tobytes() for row in data[files[-1]]}


def test_cifar_that_is_not_there(tmp_path):
    offline = os.environ | {"https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
    done = make_shards("cifar100", tmp_path / "none", "--out", tmp_path / "out", env=offline)
    assert done.returncode == 2
    assert "put cifar-100-python.tar.gz there" in done.stderr


def test_digits(tmp_path):
    assert make_shards("digits", "--out", tmp_path / "out").returncode == 0
    counts = [124, 74, 44, 26, 16, 9, 5, 3, 2, 1]
    expected = {"train": [c for c in range(10) for _ in range(counts[c])], "test": sorted(list(range(10)) * 50)}
    check_by_stock_readers(tmp_path / "out", expected)


def test_webdataset(pieces, tmp_path):
    """Somebody else's shards: written anew, or indexed where they are and class-balanced by the loader."""
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    for split, names in (("train", ["cat"] * 6 + ["dog"] * 2), ("val", ["cat", "dog"])):
        with webdataset.ShardWriter(f"{foreign}/{split}-%d.tar", maxcount=3, verbose=0) as writer:
            for number, name in enumerate(names):
                writer.write({"__key__": f"{split}{number}", "txt": name, "jpg": pieces[number]})
    expected = {"train": [0] * 6 + [1] * 2, "test": [0, 1]}
    globs = ["--train", "train-*.tar", "--test", "val-*.tar"]
    for tool, out in ((["make_shards", "webdataset"], tmp_path / "a"), (["index_shards"], tmp_path / "b")):
        done = run(*tool, foreign, *globs, "--out", out)
        assert done.returncode == 0, done.stderr
        check_by_stock_readers(out, expected)
    assert (tmp_path / "a" / "train-000000.tar").read_bytes() == (tmp_path / "b" / "train-000000.tar").read_bytes()
    before = {path.name: path.read_bytes() for path in foreign.iterdir()}
    done = run("index_shards", foreign, *globs)
    assert done.returncode == 0, done.stderr
    assert {name: (foreign / name).read_bytes() for name in before} == before
    with Loader(foreign, sampling="class_balanced", batch_size=4, image_size=32, device="cpu") as loader:
        assert [np.bincount(loader.batch(step).labels).tolist() for step in range(3)] == [[2, 2]] * 3
    refused = run("index_shards", foreign, "--short-side", "32")
    assert refused.returncode == 2
    assert "--short-side changes what is in the shards: it needs --out" in refused.stderr
    assert run("verify_shards", foreign, "--full").returncode == 0


@pytest.mark.parametrize(
    ("arrange", "message"),
    [
        (lambda root: None, "no such folder"),
        (lambda root: (root / "train").mkdir(), "holds no class folders"),
        (lambda root: (root / "train" / "a").mkdir(parents=True), "class folders hold no files|without images"),
    ],
)
def test_bad_folders_end_with_2_and_write_nothing(tmp_path, arrange, message):
    root = tmp_path / "in"
    root.mkdir()
    arrange(root)
    done = make_shards(
        "folder", "--train", root / "train", "--test", root / "train", "--out", tmp_path / "deep" / "out"
    )
    assert done.returncode == 2
    assert re.search(message, done.stderr)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_bad_arguments_end_with_2(tmp_path):
    out = ["--out", tmp_path / "out"]
    for arguments in (
        ["folder", *out],
        ["digits", *out, "--workers", "0"],
        ["digits", *out, "--quality", "101"],
        ["digits", *out, "--max-bad", "2"],
        ["folder", "--train", tmp_path, *out, "--imbalance", "0.5"],
        ["tiny-imagenet", tmp_path, *out, "--preset", "places-lt"],
        ["cifar100", tmp_path, *out, "--preset", "cifar100-lt", "--imbalance-kind", "step"],
    ):
        assert make_shards(*arguments).returncode == 2
