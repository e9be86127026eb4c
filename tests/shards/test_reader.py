import json
import shutil
import threading

import numpy as np
import pytest

from cbd_fast.errors import InputError
from cbd_fast.shards.reader import ShardReader


@pytest.fixture
def copy(photo_shards, tmp_path):
    return shutil.copytree(photo_shards, tmp_path / "copy")


def test_reads_each_image_from_many_threads(photo_shards, image_folder):
    offered = {path.read_bytes() for path in (image_folder / "train").rglob("*.*")}
    shards = ShardReader(photo_shards, "train")
    images = [b""] * len(shards)

    def read(first):
        for index in range(first, len(shards), 4):
            images[index] = shards.read(index).tobytes()

    threads = [threading.Thread(target=read, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(images) == offered
    shards.read_ahead(range(len(shards)))
    shards.close()
    assert shards.read(0).tobytes() == images[0]


def test_entries_are_those_of_the_index(photo_shards):
    shards = ShardReader(photo_shards, "train")
    for indices in ([], [4], [18, 0, 3, 0]):
        np.testing.assert_array_equal(shards.entries(indices), shards.index.entries[np.array(indices, np.int64)])


def test_name_is_that_of_the_member(photo_shards):
    shards = ShardReader(photo_shards, "train")
    assert {shards.name(index).split(":")[0] for index in range(len(shards))} == {"train-000000.tar"}
    assert len({shards.name(index) for index in range(len(shards))}) == 19
    assert shards.name(0).endswith((".jpg", ".png"))


def test_train_counts_are_known_in_every_split(photo_shards):
    assert ShardReader(photo_shards, "test").train_counts.tolist() == [12, 5, 2]


def test_unknown_split(photo_shards):
    with pytest.raises(InputError, match="no split 'val', only train, test"):
        ShardReader(photo_shards, "val")


def test_a_missing_shard_is_named(copy):
    (copy / "test-000000.tar").unlink()
    ShardReader(copy, "train")
    with pytest.raises(InputError, match=r"test-000000\.tar: missing"):
        ShardReader(copy, "test")


def test_a_shard_of_another_size_is_named(copy):
    with open(copy / "train-000000.tar", "ab") as file:
        file.write(b"more")
    with pytest.raises(InputError, match=r"train-000000\.tar: \d+ bytes, but"):
        ShardReader(copy, "train")


def test_an_index_of_another_split_is_refused(copy):
    shutil.copy(copy / "test.index.npy", copy / "train.index.npy")
    with pytest.raises(InputError, match="6 images, with other counts per class than the 19"):
        ShardReader(copy, "train")


def test_an_index_that_was_changed_is_refused(copy):
    entries = np.load(copy / "train.index.npy")
    entries["offset"][3] += 512
    np.save(copy / "train.index.npy", entries)
    with pytest.raises(InputError, match=r"not the index that dataset\.json was written with"):
        ShardReader(copy, "train")


def test_a_manifest_that_lacks_a_shard_is_refused(copy):
    manifest = json.loads((copy / "dataset.json").read_text())
    manifest["splits"]["train"]["shards"] = []
    (copy / "dataset.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="its shards hold 0 images, but the index has 19"):
        ShardReader(copy, "train")


def test_a_shard_that_ends_too_early_is_an_error_of_reading(copy):
    shards = ShardReader(copy, "train")
    last = int(shards.index.entries["offset"].argmax())
    with open(copy / "train-000000.tar", "r+b") as file:
        file.truncate(int(shards.index.entries["offset"][last]) + 10)
    with pytest.raises(OSError, match="ends at byte"):
        shards.read(last)


def test_damaged_bytes_are_an_error_of_reading(copy):
    shards = ShardReader(copy, "train")
    with open(copy / "train-000000.tar", "r+b") as file:
        file.seek(int(shards.index.entries["offset"][4]) + 100)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(OSError, match="not those that were indexed"):
        shards.read(4)
    shards.read(5)
    ShardReader(copy, "train")  # one damaged image does not keep the others from being used


def test_tars_of_other_images_are_refused(copy):
    # of the same size, as tars often are: all images moved by one block
    path = copy / "train-000000.tar"
    data = path.read_bytes()
    path.write_bytes(data[512:] + data[:512])
    with pytest.raises(InputError, match="the tars of train do not go with its index, 19 of 19 images"):
        ShardReader(copy, "train")


def test_reading_ahead_in_a_missing_shard_is_not_yet_an_error(copy):
    shards = ShardReader(copy, "train")
    shards.close()
    (copy / "train-000000.tar").unlink()
    shards.read_ahead([0, 1])
    with pytest.raises(FileNotFoundError):
        shards.read(0)
