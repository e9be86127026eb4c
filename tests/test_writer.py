import csv
import filecmp
import json
import os
import tarfile
import zlib

import numpy as np
import pytest
import webdataset
from nvidia.dali import fn, types
from nvidia.dali.pipeline import Pipeline

from cbd_fast.errors import InputError
from cbd_fast.sharding.index import ClassIndex
from cbd_fast.sharding.manifest import read_manifest
from cbd_fast.sharding.sources import SourcePicture, digits_source, folder_source
from cbd_fast.sharding.writer import ShardSize, plan_shards, write_dataset

from .conftest import encoded


def source_of(root):
    return folder_source({split: root / split for split in ("train", "test")})


def write(root, out, **options):
    return write_dataset(source_of(root), out, **({"seed": 0, "num_workers": 2} | options))


def test_same_bytes_for_every_number_of_workers(picture_folder, tmp_path):
    size = ShardSize(num_pictures=4)
    for workers in (1, 2, 4):
        write(picture_folder, tmp_path / str(workers), num_workers=workers, size=size)
    files = sorted(path.name for path in (tmp_path / "1").iterdir())
    assert sum(name.endswith(".tar") for name in files) == 5 + 2
    for workers in (2, 4):
        same, different, missing = filecmp.cmpfiles(tmp_path / "1", tmp_path / str(workers), files, shallow=False)
        assert (sorted(same), different, missing) == (files, [], [])


def test_seed_changes_the_order(picture_folder, tmp_path):
    write(picture_folder, tmp_path / "a", seed=0)
    write(picture_folder, tmp_path / "b", seed=1)
    assert read_manifest(tmp_path / "a").fingerprint != read_manifest(tmp_path / "b").fingerprint


def test_index_finds_every_picture(picture_folder, photo_shards):
    manifest = read_manifest(photo_shards)
    offered = {picture.name: picture.read() for picture in source_of(picture_folder).splits["train"]}
    index = ClassIndex.open(photo_shards / "train.index.npy", 3)
    found = {}
    for row in index.rows:
        with open(photo_shards / manifest.splits["train"].shards[row["shard"]].file, "rb") as file:
            file.seek(int(row["offset"]))
            data = file.read(int(row["size"]))
        assert zlib.crc32(data) == row["crc32"]
        found[data] = row["label"]
    classes = {data: manifest.classes.index(name.split("/")[0]) for name, data in offered.items()}
    assert found == classes


def test_tars_are_plain_and_class_mixed(photo_shards):
    with tarfile.open(photo_shards / "train-000000.tar") as tar:
        members = tar.getmembers()
        assert {(m.uid, m.gid, m.mode, m.mtime) for m in members} == {(0, 0, 0o644, 0)}
        labels = [int(tar.extractfile(m).read()) for m in members if m.name.endswith(".cls")]
        paths = [json.load(tar.extractfile(m))["path"] for m in members if m.name.endswith(".json")]
    assert labels != sorted(labels)
    assert sorted(labels) == [0] * 12 + [1] * 5 + [2] * 2
    assert [["ant", "bee", "cat"].index(path.split("/")[0]) for path in paths] == labels


def test_stock_webdataset_reads_them(photo_shards):
    url = str(photo_shards / "train-000000.tar")
    dataset = webdataset.WebDataset(url, shardshuffle=False).decode("torchrgb8").to_tuple("jpg;png", "cls", "json")
    samples = list(dataset)
    assert len(samples) == 19
    index = ClassIndex.open(photo_shards / "train.index.npy", 3)
    in_order = np.sort(index.rows, order="offset")
    assert [label for _, label, _ in samples] == in_order["label"].tolist()
    assert [tuple(image.shape[1:]) for image, _, _ in samples] == in_order[["height", "width"]].tolist()


def test_dali_reads_them(picture_folder, tmp_path):
    out = tmp_path / "digits"
    write_dataset(digits_source(0), out, seed=0, num_workers=1)
    pipeline = Pipeline(batch_size=304, num_threads=1, device_id=None)
    with pipeline:
        encoded_pictures, labels = fn.readers.webdataset(
            paths=[str(out / "train-000000.tar")], ext=["png", "cls"], missing_component_behavior="error"
        )
        pipeline.set_outputs(fn.decoders.image(encoded_pictures, output_type=types.RGB), labels)
    pictures, labels = pipeline.run()
    rows = np.sort(ClassIndex.open(out / "train.index.npy", 10).rows, order="offset")
    assert np.asarray(pictures.as_tensor()).shape == (304, 32, 32, 3)
    assert [int(bytes(np.asarray(label))) for label in labels] == rows["label"].tolist()


def test_bad_pictures_are_left_out_and_listed(photos, tmp_path):
    train = tmp_path / "in" / "train" / "a"
    train.mkdir(parents=True)
    (train / "good.jpg").write_bytes(encoded(photos[0]))
    (train / "cut.jpg").write_bytes(encoded(photos[0])[:5000])
    (train / "text.jpg").write_text("not a picture")
    (train / "empty.png").touch()
    os.symlink("nowhere", train / "gone.jpg")
    written = write_dataset(
        folder_source({"train": tmp_path / "in" / "train"}), tmp_path / "out", seed=0, num_workers=2
    )
    with open(tmp_path / "out" / "skipped.csv", newline="") as file:
        listed = {row["name"]: row["reason"] for row in csv.DictReader(file)}
    assert sorted(listed) == ["a/cut.jpg", "a/empty.png", "a/gone.jpg", "a/text.jpg"]
    assert listed["a/empty.png"] == "the file is empty"
    assert listed["a/gone.jpg"] == "No such file or directory"
    assert written.manifest.num_skipped == 4
    assert written.manifest.splits["train"].class_counts == [1]


def test_a_class_without_decodable_pictures_is_refused_and_nothing_written(photos, tmp_path):
    for name, data in (("a", encoded(photos[0])), ("b", b"not a picture")):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "1.jpg").write_bytes(data)
    with pytest.raises(InputError, match="none of the training pictures of 1 classes can be decoded, such as 'b'"):
        write_dataset(folder_source({"train": tmp_path / "in"}), tmp_path / "out", seed=0, num_workers=2)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_second_run_finds_the_first(picture_folder, tmp_path):
    first = write(picture_folder, tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    second = write(picture_folder, tmp_path / "out", num_workers=1)
    assert (first.is_new, second.is_new) == (True, False)
    assert second.manifest == first.manifest
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == times


def test_a_folder_that_holds_something_else_is_refused(picture_folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").touch()
    with pytest.raises(InputError, match="already holds something else"):
        write(picture_folder, out)
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]
    (out / "thesis.tex").unlink()
    write(picture_folder, out)  # an empty folder is fine
    with pytest.raises(InputError, match="seed 0 there, 5 asked for"):
        write(picture_folder, out, seed=5)
    with pytest.raises(InputError, match="is a file"):
        write(picture_folder, out / "dataset.json")


def test_an_unwritable_place_is_said(picture_folder, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="no folder can be made there"):
        write(picture_folder, tmp_path / "file" / "out")


def test_shards_end_at_either_limit():
    pictures = [SourcePicture(name=str(n), label=0, content=b"", num_bytes=n) for n in (5, 5, 1, 20, 1, 1, 1, 1)]
    runs = plan_shards(pictures, ShardSize(num_bytes=10, num_pictures=3))
    assert [list(run) for run in runs] == [[0, 1], [2], [3], [4, 5, 6], [7]]
