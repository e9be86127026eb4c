"""The tools that make, index and verify shards, as users type them."""

import filecmp
import io
import json
import os
import pickle
import random
import re
import resource
import signal
import subprocess
import sys
import tarfile
import time
import zlib
from pathlib import Path

import numpy as np
import psutil
import pytest
import webdataset
from nvidia.dali import fn, types
from nvidia.dali.pipeline import Pipeline
from PIL import Image

from cbd_fast import Loader
from cbd_fast.files import PARTIAL_SUFFIX
from cbd_fast.sharding.index import ClassIndex
from cbd_fast.sharding.manifest import read_manifest

from .conftest import cut, encoded

pytestmark = pytest.mark.end_to_end

REPOSITORY = Path(__file__).parent.parent


def command_of(tool, *arguments):
    return [sys.executable, f"tools/{tool}.py", *map(str, arguments)]


def run(tool, *arguments, **options):
    command = command_of(tool, *arguments)
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, **options)


def make_shards(*arguments, **options):
    return run("make_shards", *arguments, **options)


@pytest.fixture(scope="module")
def pieces(photos) -> list[bytes]:
    """Some small JPEGs."""
    rng = np.random.default_rng(0)
    return [encoded(cut(photos[number % 2], rng)) for number in range(8)]


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def check_by_stock_readers(folder: Path, expected: dict[str, list[int]]) -> None:
    """Stock webdataset and DALI read every split; ``expected`` has the sorted labels of each."""
    manifest = read_manifest(folder)
    assert {split: record.num_pictures for split, record in manifest.splits.items()} == {
        split: len(labels) for split, labels in expected.items()
    }
    for split, record in manifest.splits.items():
        paths = [str(folder / shard.file) for shard in record.shards]
        rows = np.sort(ClassIndex.open(folder / record.index, len(manifest.classes)).rows, order=["shard", "offset"])
        stock = webdataset.WebDataset(paths, shardshuffle=False).decode("torchrgb8").to_tuple("jpg;png;webp", "cls")
        samples = [(image.shape[1:], label) for image, label in stock]
        assert sorted(label for _, label in samples) == expected[split]
        assert [(*size, label) for size, label in samples] == rows[["height", "width", "label"]].tolist()

        pipeline = Pipeline(batch_size=len(rows), num_threads=1, device_id=None)
        with pipeline:
            data, label = fn.readers.webdataset(
                paths=paths, ext=["jpg;png;webp", "cls"], missing_component_behavior="error"
            )
            pipeline.set_outputs(fn.decoders.image(data, output_type=types.RGB, adjust_orientation=False), label)
        pictures, labels = pipeline.run()
        assert [int(bytes(np.asarray(each))) for each in labels] == rows["label"].tolist()
        assert [np.asarray(each).shape[:2] for each in pictures] == rows[["height", "width"]].tolist()


def test_folder(picture_folder, tmp_path):
    out = tmp_path / "shards"
    command = ["folder", "--train", picture_folder / "train", "--test", picture_folder / "test", "--out", out]
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
    for part in ("train pictures: 6, published 115,846", "classes: 2, published 1,000", "another year of ImageNet"):
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
    """The official archives' layout with few pictures; their published checksums are replaced, so that they fit."""
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
from cbd_fast.errors import run_command

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


def png(width: int, height: int) -> bytes:
    """A PNG that says it is that large, and is not."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def flipped(data: bytes) -> bytes:
    damaged = bytearray(data)
    damaged[len(data) // 2] ^= 1
    return bytes(damaged)


BAD_FILES = {
    "empty.jpg": (lambda jpeg, png_file: b"", "the file is empty"),
    "text.jpg": (lambda jpeg, png_file: b"<html>404</html>", "not a picture, or of an unknown format"),
    "half.jpg": (lambda jpeg, png_file: jpeg[: len(jpeg) // 2], "cannot be decoded"),
    "almost whole.jpg": (lambda jpeg, png_file: jpeg[:-1], "cannot be decoded"),
    "damaged.png": (lambda jpeg, png_file: flipped(png_file), "cannot be decoded"),
    "bomb.png": (lambda jpeg, png_file: png(100_000, 100_000), "100000 x 100000 pixels, more than the 178956970"),
    "large.png": (lambda jpeg, png_file: png(20_000, 10_000), "20000 x 10000 pixels, more than the 178956970"),
}


@pytest.fixture
def with_bad_files(photos, pieces, tmp_path) -> Path:
    """Two good pictures, one bad one of each kind, a link to nowhere, a pipe, and one that may not be read."""
    folder = tmp_path / "in" / "a"
    for number in (0, 1):
        write(folder / f"{number}.jpg", pieces[number])
    png_file = encoded(photos[0][:50, :60], "png")
    for name, (make, _) in BAD_FILES.items():
        write(folder / name, make(pieces[2], png_file))
    os.symlink("nowhere", folder / "gone.jpg")
    os.mkfifo(folder / "pipe.jpg")
    return tmp_path / "in"


def test_bad_files_are_listed_with_their_reasons(with_bad_files, tmp_path):
    reasons = {name: reason for name, (_, reason) in BAD_FILES.items()}
    reasons |= {"gone.jpg": "No such file or directory", "pipe.jpg": "not a regular file"}
    locked = with_bad_files / "a" / "locked.jpg"
    locked.write_bytes((with_bad_files / "a" / "0.jpg").read_bytes())
    locked.chmod(0)
    if not os.access(locked, os.R_OK):  # everything may be read by root
        reasons["locked.jpg"] = "Permission denied"
    done = make_shards("folder", "--train", with_bad_files, "--max-bad", "1", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "out" / "skipped.csv").read_text().splitlines()
    assert lines[0] == "split,label,name,reason"
    listed = {line.split(",")[2]: line for line in lines[1:]}
    assert sorted(listed) == sorted(f"a/{name}" for name in reasons)
    for name, reason in reasons.items():
        assert reason in listed[f"a/{name}"]
    assert f"{len(reasons)} pictures left out" in done.stdout


def test_a_bad_picture_with_an_odd_name_is_listed(pieces, tmp_path):
    name = os.fsdecode(b"b\xff\xe9\nd.jpg")
    write(tmp_path / "in" / "a" / "good.jpg", pieces[0])
    write(tmp_path / "in" / "a" / name, b"junk")
    command = ["folder", "--train", tmp_path / "in", "--max-bad", "0.5", "--out", tmp_path / "out"]
    for _ in range(2):  # written, and found there
        done = make_shards(*command)
        assert done.returncode == 0, done.stderr
        assert r"train/a/b\udcff\udce9\nd.jpg: not a picture" in done.stdout
    assert os.fsencode(name) in (tmp_path / "out" / "skipped.csv").read_bytes()


def test_too_many_bad_files_end_with_1(with_bad_files, tmp_path):
    command = ["folder", "--train", with_bad_files, "--out", tmp_path / "out"]
    for options, allowed in (([], 0), (["--max-bad", "0.2"], 2), (["--strict"], 0)):
        done = make_shards(*command, *options)
        assert done.returncode == 1
        assert f"{allowed + 1} pictures cannot be used, and {allowed} are allowed" in done.stderr
        listed = Path(re.search(r"all that were found so far are in (\S+)", done.stderr)[1]).read_text()
        assert len(listed.splitlines()) == 1 + allowed + 1 + listed.count("\n\n")
        assert not (tmp_path / "out").exists()


def test_odd_pictures_come_out_as_8_bit_rgb(photos, tmp_path):
    photo = Image.fromarray(photos[0][:40, :60])
    folder = tmp_path / "in" / "a"
    folder.mkdir(parents=True)
    for mode, name in (("CMYK", "cmyk.jpg"), ("P", "palette.png"), ("RGBA", "alpha.png"), ("LA", "grey alpha.png")):
        photo.convert(mode).save(folder / name)
    Image.fromarray(photos[0][:40, :60, 0].astype(np.uint16) * 257).save(folder / "16 bit.png")
    photo.save(folder / "animated.gif", save_all=True, append_images=[photo.rotate(180)])
    photo.save(folder / "animated.webp", save_all=True, append_images=[photo.rotate(180)])
    photo.save(folder / "mislabelled.JPEG", format="PNG")
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(folder / "turned.jpg", exif=exif)
    done = make_shards("folder", "--train", tmp_path / "in", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "7 pictures coded anew as 8-bit RGB" in done.stdout
    assert "1 pictures have an orientation tag" in done.stdout
    check_by_stock_readers(tmp_path / "out", {"train": [0] * 9})
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}
    for name, data in members.items():
        if name.endswith(".json"):
            key, path = name.removesuffix(".json"), json.loads(data)["path"]
            extension = "jpg" if path == "a/turned.jpg" else "png"
            image = Image.open(io.BytesIO(members[f"{key}.{extension}"]))
            assert (image.format, image.mode, image.size) == ({"jpg": "JPEG"}.get(extension, "PNG"), "RGB", (60, 40))


def test_odd_names_survive(pieces, tmp_path):
    names = ["a b/c d.jpg", "line\nbreak.jpg", "ünïcode/日本.jpg", "v1.2/x.y.z.jpg", "one/0.jpg", "two/0.jpg"]
    names.append(os.fsdecode(b"latin-\xe9.jpg"))
    for name, piece in zip(names, pieces, strict=False):
        write(tmp_path / "in" / "a" / name, piece)
    assert make_shards("folder", "--train", tmp_path / "in", "--out", tmp_path / "out").returncode == 0
    again = run("index_shards", tmp_path / "out", "--out", tmp_path / "again")
    assert again.returncode == 0, again.stderr
    for out in (tmp_path / "out", tmp_path / "again"):
        samples = webdataset.WebDataset(str(out / "train-000000.tar"), shardshuffle=False)
        found = {json.loads(sample["json"])["path"]: sample["jpg"] for sample in samples}
        assert found == {f"a/{name}": piece for name, piece in zip(names, pieces, strict=False)}


def test_shrinking(picture_folder, tmp_path):
    command = ["folder", "--train", picture_folder / "train", "--short-side", "48", "--quality", "80"]
    done = make_shards(*command, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "19 pictures shrunk" in done.stdout
    rows = np.load(tmp_path / "out" / "train.index.npy")
    assert np.minimum(rows["width"], rows["height"]).tolist() == [48] * 19
    check_by_stock_readers(tmp_path / "out", {"train": [0] * 12 + [1] * 5 + [2] * 2})


@pytest.fixture(scope="module")
def many_pictures(photos, tmp_path_factory) -> Path:
    """400 small pictures of four classes, a few of them bad."""
    rng = np.random.default_rng(1)
    root = tmp_path_factory.mktemp("many")
    for number in range(400):
        data = encoded(cut(photos[number % 2], rng))
        write(root / "abcd"[number % 4] / f"{number}.jpg", data[:100] if number % 133 == 7 else data)
    return root


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(many_pictures, tmp_path, workers):
    command = ["folder", "--train", many_pictures, "--shard-pictures", "8", "--max-bad", "0.1", "--seed", "5"]
    assert make_shards(*command, "--workers", "3", "--out", tmp_path / "whole").returncode == 0
    expected = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert len(expected) == 50 + 3
    moments, num_half_made = random.Random(workers), 0
    for number in range(20):
        out, half = tmp_path / str(number), tmp_path / f"{number}{PARTIAL_SUFFIX}"
        arguments = command_of("make_shards", *command, "--workers", workers, "--out", out)
        process = subprocess.Popen(arguments, cwd=REPOSITORY, stdout=subprocess.DEVNULL, start_new_session=True)
        # the moment is that of a number of shards, so that it falls into the work however fast the machine is
        num_shards = moments.randrange(-10, 50)
        while process.poll() is None and len(list(half.glob("*.tar"))) < num_shards:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.02 if num_shards > 0 else 0.5))
        if number % 2:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()  # its workers have to notice
        process.wait()
        num_half_made += 0 < len(list(half.glob("*.tar"))) < 50
        assert not out.exists() or not half.exists()
        assert not (half / "dataset.json").exists() or len(list(half.glob("*.tar"))) == 50
        done = make_shards(*command, "--workers", workers, "--out", out)
        assert done.returncode == 0, done.stderr
        assert sorted(path.name for path in out.iterdir()) == expected
        assert filecmp.cmpfiles(tmp_path / "whole", out, expected, shallow=False)[0] == expected
        assert not half.exists()
    assert num_half_made >= 10  # else little was shown


def test_a_full_disk_ends_with_1_and_the_command_goes_on(many_pictures, tmp_path):
    command = ["folder", "--train", many_pictures, "--max-bad", "0.1", "--out", tmp_path / "out"]

    def no_large_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))

    done = make_shards(*command, preexec_fn=no_large_files)
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert not (tmp_path / "out").exists()
    assert make_shards(*command).returncode == 0


def test_a_worker_that_dies_is_an_error_that_names_its_picture(many_pictures, tmp_path):
    command = [
        "folder",
        "--train",
        many_pictures,
        "--max-bad",
        "0.1",
        "--shard-pictures",
        "4",
        "--out",
        tmp_path / "out",
    ]
    process = subprocess.Popen(
        command_of("make_shards", *command),
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    half = tmp_path / f"out{PARTIAL_SUFFIX}"
    while not list(half.glob("*.tar")):
        assert process.poll() is None
        time.sleep(0.001)
    psutil.Process(process.pid).children()[0].kill()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert re.search(r"a worker was killed by signal 9 at '[abcd]/\d+\.jpg' of train, or just after it", errors)
    assert make_shards(*command).returncode == 0


def test_a_lost_folder_of_pictures_is_not_a_thousand_bad_ones(many_pictures, tmp_path):
    moved = tmp_path / "moved"
    away = tmp_path / "pictures"
    for path in many_pictures.rglob("*.jpg"):
        write(away / path.relative_to(many_pictures), path.read_bytes())
    listed = tmp_path / "train.txt"
    names = sorted(path.relative_to(away).as_posix() for path in away.rglob("*.jpg"))
    listed.write_text("".join(f"{name} {'abcd'.index(name[0])}\n" for name in names))
    command = ["list", "--images", away, "--train", listed, "--max-bad", "1", "--out", tmp_path / "out"]
    process = subprocess.Popen(
        command_of("make_shards", *command, "--shard-pictures", "4", "--workers", "1"),
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
    )
    half = tmp_path / f"out{PARTIAL_SUFFIX}"
    deadline = time.monotonic() + 60
    while not list(half.glob("*.tar")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)
    away.rename(moved)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "the folder of the pictures is gone; once it is back, give the same command" in errors
    moved.rename(away)
    assert make_shards(*command, "--shard-pictures", "4").returncode == 0
    assert len((tmp_path / "out" / "skipped.csv").read_text().splitlines()) == 1 + 3


def test_verify_and_quarantine(picture_folder, tmp_path):
    out = tmp_path / "out"
    command = ["folder", "--train", picture_folder / "train", "--test", picture_folder / "test", "--out", out]
    assert make_shards(*command).returncode == 0
    for options in ([], ["--full"]):
        done = run("verify_shards", out, *options)
        assert (done.returncode, done.stdout.count("no problems")) == (0, 2)
    row = np.load(out / "train.index.npy")[5]
    with open(out / "train-000000.tar", "r+b") as file:
        file.seek(int(row["offset"]) + 300)
        file.write(b"damage")
    done = run("verify_shards", out, "--full")
    assert done.returncode == 1
    assert f"train-000000.tar: byte {int(row['offset']):,}: the bytes are not those that were indexed" in done.stdout
    done = run("verify_shards", out, "--quarantine")
    assert done.returncode == 0, done.stderr
    assert "quarantined: train 1, test 0" in done.stdout
    done = run("verify_shards", out, "--full")
    assert done.returncode == 0
    assert "1 are quarantined" in done.stdout
    assert run("verify_shards", tmp_path).returncode == 2


@pytest.mark.parametrize(
    ("arrange", "message"),
    [
        (lambda root: None, "no such folder"),
        (lambda root: (root / "train").mkdir(), "holds no class folders"),
        (lambda root: (root / "train" / "a").mkdir(parents=True), "class folders hold no files|without pictures"),
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
