"""Readers while others write, with few files, and with names that somebody else chose."""

import gc
import json
import os
import resource
import shutil
import threading

import numpy as np
import pytest

from cbd_fast.errors import InputError, RunError
from cbd_fast.shards import reader as reader_module
from cbd_fast.shards.manifest import read_manifest
from cbd_fast.shards.reader import ShardReader
from cbd_fast.shards.verify import quarantine, verify_split
from cbd_fast.shards.writing.tar_writer import tar_member
from tests.helpers import with_bad_images


@pytest.fixture
def many(forge):
    """Shards of which each image has a tar of its own."""

    def spread(entries):
        entries["shard"] = np.arange(19)
        return entries

    def name_all(content):
        record = content["splits"]["train"]
        record["shards"] = [record["shards"][0] | {"file": f"t{n}.tar", "num_images": 1} for n in range(19)]

    folder = forge(name_all, spread)
    for number in range(19):
        os.link(folder / "train-000000.tar", folder / f"t{number}.tar")
    return folder


def open_files(folder) -> int:
    gc.collect()
    there = (os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd"))
    return sum(os.path.islink(path) and str(folder) in os.readlink(path) for path in there)


def test_few_shards_stay_open_where_few_files_may_be(many, photo_shards, monkeypatch):
    expected = ShardReader(photo_shards, "train")
    monkeypatch.setattr(reader_module, "_allow_open_files", lambda num_shards: 3)
    shards = ShardReader(many, "train")
    wrong = []

    def read(start):
        for round_ in range(20):
            for index in range(start, 19, 2):
                if shards.read(index).tobytes() != expected.read(index).tobytes():
                    wrong.append((round_, index))

    threads = [threading.Thread(target=read, args=(start,)) for start in (0, 1, 0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shards.read_ahead(range(19))
    assert wrong == []
    assert open_files(many) == 5  # the index is one, and its map another
    shards.close()
    assert open_files(many) == 1


@pytest.mark.parametrize(
    ("soft", "hard", "kept"),
    [(1 << 20, 1 << 20, 500), (64, 1 << 20, 500), (64, 64, 8), (64, 300, 44), (1024, -1, 500), (-1, -1, 500)],
)
def test_the_limit_of_open_files_is_raised_as_far_as_it_may_be(monkeypatch, soft, hard, kept):
    limits = [soft, hard]
    monkeypatch.setattr(resource, "getrlimit", lambda kind: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, new: limits.__setitem__(slice(None), new))
    assert reader_module._allow_open_files(500) == kept


def test_too_many_open_files_are_no_bad_image(many):
    shards = ShardReader(many, "train")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 2, before[1]))
    try:
        while True:
            try:
                taken.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                break
        assert len(shards._files) == 19
        shards._files.pop(1)
        taken.append(os.open("/dev/null", os.O_RDONLY))
        shards.read(1)  # the other shards are closed for it
        assert len(shards._files) == 1
        shards._files.clear()
        taken += [os.open("/dev/null", os.O_RDONLY) for _ in range(19 - 1)]
        with pytest.raises(RunError, match=r"t2\.tar: Too many open files .*ulimit -n"):
            shards.read(2)
        shards.read_ahead([3])
        assert shards.name(4) == "t4.tar: byte " + str(shards.entries([4])[0]["offset"])
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    shards.read(2)


def test_an_open_reader_keeps_its_index(photo_shards, tmp_path):
    copy, _ = with_bad_images(photo_shards, tmp_path, 2)
    shards = ShardReader(copy, "train")
    expected = shards.entries(range(19))
    quarantine(copy, {"train": verify_split(copy, read_manifest(copy), "train", is_full=True, num_workers=1)})
    assert not (copy / "train.index.npy").exists()
    np.testing.assert_array_equal(shards.entries(range(19)), expected)
    shards.close()
    shutil.copy(copy / "test.index.npy", copy / "train.index.npy")  # another by the same name
    np.testing.assert_array_equal(shards.entries(range(19)), expected)
    np.testing.assert_array_equal(shards.entries([]), expected[:0])
    assert len(shards.read(5)) == expected["size"][5]


@pytest.mark.parametrize("moment", ["ClassIndex", "file_crc32", "_OpenFile"])
def test_a_reader_that_opens_while_images_are_quarantined_sees_old_or_new(photo_shards, tmp_path, monkeypatch, moment):
    copy, _ = with_bad_images(photo_shards, tmp_path, 2)
    findings = {"train": verify_split(copy, read_manifest(copy), "train", is_full=True, num_workers=1)}
    happened = []

    def in_between(call):
        def wrapped(*arguments):
            if not happened:
                happened.append(quarantine(copy, findings))
            return call(*arguments)

        return wrapped

    if moment == "ClassIndex":
        monkeypatch.setattr(reader_module.ClassIndex, "open", in_between(reader_module.ClassIndex.open))
    else:
        monkeypatch.setattr(reader_module, moment, in_between(getattr(reader_module, moment)))
    shards = ShardReader(copy, "train")
    assert happened == [shards.manifest]
    assert shards.quarantined.tolist() == [0, 1]
    assert shards.entries(range(19)).tolist() == np.load(copy / "train.index.1.npy").tolist()


def test_a_number_of_marks_that_is_not_the_manifests_is_refused(forge):
    def mark(entries):
        entries["width"][2] = entries["height"][2] = 0
        return entries

    with pytest.raises(InputError, match=r"1 images of train are marked as bad, but dataset\.json has 0"):
        ShardReader(forge(index=mark), "train")


def test_pipes_and_folders_in_place_of_files_are_refused(forge):
    for name in ("train-000000.tar", "train.index.npy"):
        folder = forge()
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(InputError, match=f"{name}: no regular file, but"):
            ShardReader(folder, "train")
        (folder / name).unlink()
        (folder / name).mkdir()
        with pytest.raises(InputError, match=f"{name}: no regular file, but"):
            ShardReader(folder, "train")
    (folder / name).rmdir()
    (folder / name).symlink_to(name)
    with pytest.raises(InputError, match=f"{name}: Too many levels of symbolic links, but"):
        ShardReader(folder, "train")


def test_the_name_of_a_member_is_shown_without_its_escapes(forge):
    folder = forge()
    entry = ShardReader(folder, "train").entries([4])[0]
    header, _, _ = tar_member("a\x1b[2Jb\n.jpg", b"")
    with open(folder / "train-000000.tar", "r+b") as file:
        file.seek(int(entry["offset"]) - 512)
        file.write(header)
    assert ShardReader(folder, "train").name(4) == r"train-000000.tar:a\x1b[2Jb\n.jpg"


def test_every_split_counts_classes_as_training_does(forge):
    def drop(content):
        del content["splits"]["test"]

    assert ShardReader(forge(drop), "train").train_counts.tolist() == [12, 5, 2]
    content = json.loads((forge() / "dataset.json").read_text())
    assert content["splits"]["test"]["num_images"] == 6
