import json
import shutil
import tarfile

import numpy as np
import pytest

from cbd_fast import Loader
from cbd_fast.errors import InputError, RunError
from cbd_fast.shards.index import ClassIndex
from cbd_fast.shards.manifest import read_manifest
from cbd_fast.shards.reader import ShardReader
from cbd_fast.shards.verify import quarantine, verify_split


@pytest.fixture
def shards(photo_shards, tmp_path):
    return shutil.copytree(photo_shards, tmp_path / "shards")


def verify(folder, split="train", is_full=True):
    return verify_split(folder, read_manifest(folder), split, is_full=is_full, num_workers=2)


def damage(folder, indices, split="train"):
    """Turns a byte over in the middle of some images."""
    index = ClassIndex.open(folder / read_manifest(folder).splits[split].index, 3)
    with open(folder / f"{split}-000000.tar", "r+b") as file:
        for entry in index.entries[indices]:
            middle = int(entry["offset"]) + int(entry["size"]) // 2
            file.seek(middle)
            byte = file.read(1)[0]
            file.seek(middle)
            file.write(bytes([byte ^ 0xFF]))


def test_shards_as_they_were_made(shards):
    for is_full in (False, True):
        findings = verify(shards, is_full=is_full)
        assert (findings.problems, findings.lasting_problems, findings.bad, findings.good) == ([], [], [], {})


def test_damage_is_found_only_where_it_is_looked_for(shards):
    damage(shards, [3, 15])
    assert not verify(shards, is_full=False).problems
    findings = verify(shards)
    assert [bad.index for bad in findings.bad] == [3, 15]
    assert "crc32" in findings.bad[0].reason
    assert "sha256" in findings.problems[0]


def test_quarantined_images_are_passed_over_and_come_back(shards):
    before = read_manifest(shards)
    whole = (shards / "train-000000.tar").read_bytes()
    damage(shards, [3, 12, 17])
    manifest = quarantine(shards, {split: verify(shards, split) for split in ("train", "test")})
    assert manifest == read_manifest(shards)
    record = manifest.splits["train"]
    assert (record.num_quarantined, record.num_images, record.index) == (3, 19, "train.index.1.npy")
    assert manifest.splits["test"] == before.splits["test"]
    assert manifest.fingerprint == before.fingerprint  # a run may go on
    assert not (shards / "train.index.npy").exists()
    assert ShardReader(shards, "train").quarantined.tolist() == [3, 12, 17]
    findings = verify(shards)
    assert (findings.problems, findings.bad, findings.good) == ([], [], {})

    reported = []
    settings = {"sampling": "class_balanced", "batch_size": 6, "image_size": 32, "device": "cpu"}
    with Loader(shards, on_bad_image=lambda *what: reported.append(what), **settings) as loader:
        batches = [loader.batch(step) for step in range(20)]
    ids = np.concatenate([batch.ids for batch in batches])
    assert not {3, 12, 17} & set(ids.tolist())
    labels = np.concatenate([batch.labels for batch in batches])
    assert np.bincount(labels).tolist() == [40, 40, 40]  # each class keeps its quota
    assert reported == []  # they are known
    with Loader(shards, sampling="sequential", batch_size=32, image_size=32, device="cpu") as loader:
        assert sorted(set(range(19)) - set(loader.batch(0).ids.tolist())) == [3, 12, 17]

    (shards / "train-000000.tar").write_bytes(whole)
    findings = verify(shards)
    assert sorted(findings.good) == [3, 12, 17]
    manifest = quarantine(shards, {"train": findings})
    after = ClassIndex.open(shards / manifest.splits["train"].index, 3).entries
    assert manifest.splits["train"].num_quarantined == 0
    assert manifest.splits["train"].index_crc32 == before.splits["train"].index_crc32
    assert len(after) == 19
    assert not verify(shards).problems


def test_a_class_without_good_images_is_an_error_that_names_it(shards):
    damage(shards, [17, 18])
    quarantine(shards, {"train": verify(shards)})
    loader = Loader(shards, sampling="class_balanced", batch_size=6, image_size=32, device="cpu")
    with loader, pytest.raises(RunError, match="no image of class 'cat' can be decoded"):
        loader.batch(0)


def test_a_cut_off_tar_is_repaired_as_far_as_it_goes(shards):
    tar = shards / "train-000000.tar"
    size = tar.stat().st_size
    with open(tar, "r+b") as file:
        file.truncate(size // 2)
    with pytest.raises(InputError, match=r"bytes, but dataset.json has"):
        ShardReader(shards, "train")
    findings = verify(shards)
    assert "bytes, but dataset.json has" in findings.problems[0]
    assert 0 < len(findings.bad) < 19
    assert {bad.reason for bad in findings.bad} == {"the tar ends before it"}
    quarantine(shards, {"train": findings})
    assert len(ShardReader(shards, "train").quarantined) == len(findings.bad)
    for is_full in (False, True):
        again = verify(shards, is_full=is_full)
        assert (again.problems, again.lasting_problems, again.bad) == ([], [], [])


def test_what_no_quarantine_repairs(shards):
    (shards / "train-000000.tar").unlink()
    findings = verify(shards, is_full=False)
    assert "No such file or directory; bring it back" in findings.lasting_problems[0]
    data = bytearray((shards / "test.index.npy").read_bytes())
    data[-1] ^= 1
    (shards / "test.index.npy").write_bytes(data)
    with pytest.raises(InputError, match=r"not the index that dataset.json was written with"):
        verify(shards, "test")


def test_offsets_and_labels_are_compared_with_the_tar(shards):
    index = np.load(shards / "train.index.npy")
    tar = shards / "train-000000.tar"
    with tarfile.open(tar) as opened:
        label = next(member for member in opened if member.name.endswith(".cls"))
    with open(tar, "r+b") as file:  # of the same size, so only the content tells
        file.seek(label.offset_data)
        old = int(file.read(1))
        file.seek(label.offset_data)
        file.write(b"%d" % ((old + 1) % 3))
    for is_full in (False, True):
        (problem,) = verify(shards, is_full=is_full).lasting_problems
        assert f"has label {(old + 1) % 3}, but {old} in the index" in problem
    # no image is bad, so nothing is to be marked, and the damage is not taken for how it should be
    before = read_manifest(shards)
    assert quarantine(shards, {"train": verify(shards)}) == before
    with open(tar, "r+b") as file:
        file.seek(int(index["offset"][0]) - 512)
        file.write(bytes(512))
    assert verify(shards, is_full=False).lasting_problems


def test_a_manifest_of_another_number_is_refused(shards):
    manifest = json.loads((shards / "dataset.json").read_text())
    manifest["splits"]["train"]["num_quarantined"] = 2
    (shards / "dataset.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"0 images of train are marked as bad, but dataset.json has 2"):
        ShardReader(shards, "train")
