import csv
import json
import os
import shutil
import tarfile
import zlib

import numpy as np
import pytest
import webdataset
from nvidia.dali import fn, types
from nvidia.dali.pipeline import Pipeline

from cbd_fast.errors import InputError, RunError
from cbd_fast.files import PARTIAL_SUFFIX
from cbd_fast.shards.index import ClassIndex
from cbd_fast.shards.long_tail import LongTail
from cbd_fast.shards.manifest import read_manifest
from cbd_fast.shards.sources.archives import digits_source
from cbd_fast.shards.sources.image_folder import folder_source
from cbd_fast.shards.writing.dataset_writer import write_dataset
from cbd_fast.shards.writing.options import ShardSize, WriteListener, WriteOptions
from cbd_fast.shards.writing.validate_image import ImageRules
from tests.helpers import assert_same_files, encoded


def source_of(root):
    return folder_source({split: root / split for split in ("train", "test")})


def write(root, out, num_workers=2, listener=None, **options):
    return write_dataset(source_of(root), out, WriteOptions(**options), num_workers=num_workers, listener=listener)


class Notes(WriteListener):
    def __init__(self):
        self.notes, self.updates = [], []

    def note(self, message):
        self.notes.append(message)

    def update(self, num_images):
        self.updates.append(num_images)


def test_same_bytes_for_every_number_of_workers(image_folder, tmp_path):
    size = ShardSize(num_images=4)
    for workers in (1, 2, 4):
        write(image_folder, tmp_path / str(workers), num_workers=workers, size=size)
    files = sorted(path.name for path in (tmp_path / "1").iterdir())
    assert sum(name.endswith(".tar") for name in files) == 5 + 2
    for workers in (2, 4):
        assert_same_files(tmp_path / "1", tmp_path / str(workers))


def test_seed_changes_the_order(image_folder, tmp_path):
    write(image_folder, tmp_path / "a", seed=0)
    write(image_folder, tmp_path / "b", seed=1)
    assert read_manifest(tmp_path / "a").fingerprint != read_manifest(tmp_path / "b").fingerprint


def test_index_finds_every_image(image_folder, photo_shards):
    manifest = read_manifest(photo_shards)
    offered = {p.name: p.read() for p in source_of(image_folder).images() if p.split == "train"}
    index = ClassIndex.open(photo_shards / "train.index.npy", 3)
    labels = {}
    for entry in index.entries:
        with open(photo_shards / manifest.splits["train"].shards[entry["shard"]].file, "rb") as file:
            file.seek(int(entry["offset"]))
            data = file.read(int(entry["size"]))
        assert zlib.crc32(data) == entry["crc32"]
        labels[data] = entry["label"]
    classes = {data: manifest.classes.index(name.split("/")[0]) for name, data in offered.items()}
    assert labels == classes


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
    in_order = np.sort(index.entries, order="offset")
    assert [label for _, label, _ in samples] == in_order["label"].tolist()
    assert [tuple(image.shape[1:]) for image, _, _ in samples] == in_order[["height", "width"]].tolist()


def test_dali_reads_them(image_folder, tmp_path):
    out = tmp_path / "digits"
    write_dataset(digits_source(0), out, WriteOptions(), num_workers=1)
    pipeline = Pipeline(batch_size=304, num_threads=1, device_id=None)
    with pipeline:
        encoded_images, labels = fn.readers.webdataset(
            paths=[str(out / "train-000000.tar")], ext=["png", "cls"], missing_component_behavior="error"
        )
        pipeline.set_outputs(fn.decoders.image(encoded_images, output_type=types.RGB), labels)
    images, labels = pipeline.run()
    entries = np.sort(ClassIndex.open(out / "train.index.npy", 10).entries, order="offset")
    assert np.asarray(images.as_tensor()).shape == (304, 32, 32, 3)
    assert [int(bytes(np.asarray(label))) for label in labels] == entries["label"].tolist()


def test_bad_images_are_left_out_and_listed(photos, tmp_path):
    train = tmp_path / "in" / "train" / "a"
    train.mkdir(parents=True)
    (train / "good.jpg").write_bytes(encoded(photos[0]))
    (train / "cut.jpg").write_bytes(encoded(photos[0])[:5000])
    (train / "text.jpg").write_text("not an image")
    (train / "empty.png").touch()
    os.symlink("nowhere", train / "gone.jpg")
    written = write_dataset(
        folder_source({"train": tmp_path / "in" / "train"}),
        tmp_path / "out",
        WriteOptions(max_bad_fraction=1),
        num_workers=2,
    )
    with open(tmp_path / "out" / "skipped.csv", newline="") as file:
        listed = {row["name"]: row["reason"] for row in csv.DictReader(file)}
    assert sorted(listed) == ["a/cut.jpg", "a/empty.png", "a/gone.jpg", "a/text.jpg"]
    assert listed["a/empty.png"] == "the file is empty"
    assert listed["a/gone.jpg"] == "No such file or directory"
    assert written.manifest.num_skipped == 4
    assert written.manifest.splits["train"].class_counts == [1]


def test_a_class_without_decodable_images_is_an_error_and_listed(photos, tmp_path):
    for name, data in (("a", encoded(photos[0])), ("b", b"not an image")):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "1.jpg").write_bytes(data)
    source = folder_source({"train": tmp_path / "in"})
    with pytest.raises(RunError, match="none of the training images of 1 classes can be decoded, such as 'b'"):
        write_dataset(source, tmp_path / "out", WriteOptions(max_bad_fraction=1), num_workers=2)
    assert not (tmp_path / "out").exists()
    assert "b/1.jpg" in (tmp_path / f"out{PARTIAL_SUFFIX}" / "skipped.csv").read_text()


def test_a_second_run_finds_the_first(image_folder, tmp_path):
    first = write(image_folder, tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    second = write(image_folder, tmp_path / "out", num_workers=1)
    assert (first.is_new, second.is_new) == (True, False)
    assert second.manifest == first.manifest
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == times


def test_a_folder_that_holds_something_else_is_refused(image_folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").touch()
    with pytest.raises(InputError, match="already holds something else"):
        write(image_folder, out)
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]
    (out / "thesis.tex").unlink()
    write(image_folder, out)  # an empty folder is fine
    with pytest.raises(InputError, match="seed 0 there, 5 asked for"):
        write(image_folder, out, seed=5)
    with pytest.raises(InputError, match="imbalance None there, 2 asked for"):
        write(image_folder, out, tail=LongTail(imbalance=2))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(InputError, match="is a file"):
        write(image_folder, out / "dataset.json")


def test_shards_of_an_older_version_are_not_touched(image_folder, tmp_path):
    write(image_folder, tmp_path / "out")
    path = tmp_path / "out" / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 1}))
    with pytest.raises(InputError, match=r"made by an older version .* make the shards again, in another folder"):
        write(image_folder, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_unwritable_place_is_said(image_folder, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="no folder can be made there"):
        write(image_folder, tmp_path / "file" / "out")


class Killed(WriteListener):
    """Ends the command, as Ctrl-C does, when some images are done."""

    def update(self, num_images):
        if num_images >= 10:
            raise KeyboardInterrupt


def test_an_interrupted_command_is_not_mixed_up_with_another(image_folder, tmp_path):
    root, options = tmp_path / "in", {"size": ShardSize(num_images=2), "num_workers": 1}
    shutil.copytree(image_folder, root)
    write(root, tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        write(root, tmp_path / "out", listener=Killed(), **options)
    half = tmp_path / f"out{PARTIAL_SUFFIX}"
    assert list(half.glob("*.tar"))
    before = sorted(half.rglob("*"))
    with pytest.raises(InputError, match=r"half-made shards of something else \(seed 0 there, 1 asked for\)"):
        write(root, tmp_path / "out", seed=1, **options)
    changed = root / "train" / "ant" / "0.jpg"
    status, content = changed.stat(), changed.read_bytes()
    changed.write_bytes(content[:-10] + bytes(8) + content[-2:])  # of the same size
    with pytest.raises(InputError, match="the files have changed since"):
        write(root, tmp_path / "out", **options)
    assert sorted(half.rglob("*")) == before  # nothing that was done is lost
    changed.write_bytes(content)
    os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns))
    write(root, tmp_path / "out", **options)
    assert_same_files(tmp_path / "whole", tmp_path / "out")


def test_nothing_is_done_twice_after_an_error(image_folder, tmp_path):
    root, options = tmp_path / "in", {"size": ShardSize(num_images=4), "num_workers": 1}
    for split in ("train", "test"):
        for path in (image_folder / split).rglob("*.*"):
            copy = root / path.relative_to(image_folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    bad = root / "test" / "cat" / "1.png"  # the test split comes last
    bad.write_bytes(bytes(len(bad.read_bytes())))
    with pytest.raises(RunError, match=r"1 images cannot be used, and 0 are allowed.*test/cat/1\.png: not an image"):
        write(root, tmp_path / "out", max_bad_fraction=0, **options)
    assert not (tmp_path / "out").exists()
    listed = tmp_path / f"out{PARTIAL_SUFFIX}" / ".cbd_fast-work" / "skipped.csv"
    assert "test,2,cat/1.png,not an image, or of an unknown format" in listed.read_text().replace('"', "")
    notes = Notes()
    written = write(root, tmp_path / "out", max_bad_fraction=1, listener=notes, **options)
    assert notes.updates[0] == 19  # the five shards of train were there
    assert written.manifest.num_skipped == 1
    with pytest.raises(RunError, match="was made without 1 images that cannot be used, and 0 are allowed"):
        write(root, tmp_path / "out", max_bad_fraction=0, **options)
    write(root, tmp_path / "other", max_bad_fraction=1, **options)
    assert_same_files(tmp_path / "out", tmp_path / "other")


def test_what_could_not_be_read_is_tried_again(image_folder, tmp_path):
    root = tmp_path / "in"
    (root / "ant").mkdir(parents=True)
    for number in range(3):
        (root / "ant" / f"{number}.jpg").write_bytes((image_folder / "train" / "ant" / "0.jpg").read_bytes())
    away = root / "ant" / "1.jpg"
    away.rename(tmp_path / "away")
    os.symlink(tmp_path / "link", away)  # not there at first
    options = WriteOptions(max_bad_fraction=0.5, is_whole=False)
    source = folder_source({"train": root})
    written = write_dataset(source, tmp_path / "out", options, num_workers=1)
    assert [skip.unreadable for skip in written.skipped] == [True]
    with pytest.raises(RunError, match=r"1 of 3 images are missing, such as train/ant/1\.jpg; all are in .*skipped"):
        write_dataset(source, tmp_path / "whole", WriteOptions(is_whole=True, preset=None), num_workers=1)
    listed = (tmp_path / f"whole{PARTIAL_SUFFIX}" / "skipped.csv").read_text()
    assert "train,0,ant/1.jpg,No such file or directory" in listed
    (tmp_path / "away").rename(tmp_path / "link")
    written = write_dataset(source, tmp_path / "whole", WriteOptions(is_whole=True), num_workers=1)
    assert written.manifest.splits["train"].num_images == 3


def test_shards_inside_the_images_are_refused(image_folder):
    with pytest.raises(InputError, match="whose images are taken; choose an --out outside"):
        write(image_folder, image_folder / "train" / "shards")


def test_two_commands_do_not_write_the_same_folder(image_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("cbd_fast.folder_lock.LOCK_SECONDS", 0)

    class Second(WriteListener):
        def start(self, num_images):
            with pytest.raises(InputError, match=r"another command \(process \d+\) is writing there"):
                write(image_folder, tmp_path / "out")
            self.tried = True

    second = Second()
    write(image_folder, tmp_path / "out", listener=second)
    assert second.tried
    assert (tmp_path / "out" / "dataset.json").exists()


def test_images_are_shrunk_and_the_index_knows(image_folder, tmp_path):
    rules = ImageRules(short_side=50)
    written = write(image_folder, tmp_path / "out", rules=rules)
    entries = ClassIndex.open(tmp_path / "out" / "train.index.npy", 3).entries
    assert np.minimum(entries["width"], entries["height"]).tolist() == [50] * 19
    assert written.num_resized == 25
    assert written.manifest.recipe.options["short_side"] == 50
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as tar:
        kinds = {name.rpartition(".")[2] for name in tar.getnames()}
    assert kinds == {"jpg", "png", "cls", "json"}  # what was lossless stays so
