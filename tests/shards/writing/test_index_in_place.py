import hashlib
import json
import tarfile

import numpy as np
import pytest
import webdataset

from cbd_fast import Loader
from cbd_fast.errors import InputError, RunError
from cbd_fast.files import PARTIAL_SUFFIX
from cbd_fast.shards.manifest import read_manifest
from cbd_fast.shards.reader import ShardReader
from cbd_fast.shards.sources.webdataset import TarLayout, webdataset_source
from cbd_fast.shards.verify import verify_split
from cbd_fast.shards.writing import finalize
from cbd_fast.shards.writing.dataset_writer import write_dataset
from cbd_fast.shards.writing.index_in_place import index_dataset
from cbd_fast.shards.writing.options import WriteListener, WriteOptions
from tests.helpers import cut, encoded


@pytest.fixture
def foreign(photos, tmp_path):
    """Shards of stock webdataset: 12 cats, 4 dogs and 2 emus for training, one each for testing."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "foreign"
    folder.mkdir()
    for split, names in (("train", ["cat"] * 12 + ["dog"] * 4 + ["emu"] * 2), ("test", ["cat", "dog", "emu"])):
        with webdataset.ShardWriter(f"{folder}/{split}-%04d.tar", maxcount=7, verbose=0) as writer:
            for number, name in enumerate(names):
                sample = {"__key__": f"{split}/{number:03d}", "txt": name, "json": {"who": name, "number": number}}
                extension = "png" if number % 3 == 0 else "jpeg"
                image = encoded(cut(photos[number % 2], rng), {"jpeg": "jpg"}.get(extension, extension))
                writer.write(sample | {extension: image})
    return folder


def index(folder, options=None, **layout):
    source = webdataset_source(folder, TarLayout(**layout))
    return index_dataset(source, folder, options or WriteOptions(), num_workers=2)


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.tar")}


def test_foreign_shards_become_class_balanced_untouched(foreign):
    before = digests(foreign)
    written = index(foreign)
    assert digests(foreign) == before
    assert written.manifest.classes == ["cat", "dog", "emu"]
    assert written.manifest.splits["train"].class_counts == [12, 4, 2]
    assert {path.suffix for path in foreign.iterdir()} == {".tar", ".npy", ".json", ".csv"}
    with Loader(foreign, sampling="class_balanced", batch_size=6, image_size=32, device="cpu") as loader:
        for step in range(4):
            batch = loader.batch(step)
            assert np.bincount(batch.labels).tolist() == [2, 2, 2]
    train = ShardReader(foreign, "train")
    samples = webdataset.WebDataset(sorted(map(str, foreign.glob("train*.tar"))), shardshuffle=False)
    stock = [(sample["__key__"], sample["txt"].decode(), sample.get("png") or sample["jpeg"]) for sample in samples]
    indices = np.argsort(train.index.entries, order=["shard", "offset"])
    for position, (key, name, image) in zip(indices, stock, strict=True):
        assert train.read(position).tobytes() == image
        assert written.manifest.classes[train.index.entries["label"][position]] == name
        assert train.name(position).split(":")[1].startswith(key)


def test_a_key_of_the_json_as_label(foreign):
    assert index(foreign, label_key="who").manifest.classes == ["cat", "dog", "emu"]
    assert index(foreign, label_key="number").manifest.classes == [str(number) for number in range(18)]
    before = sorted(foreign.iterdir())
    with pytest.raises(InputError, match="no label under 'nothing'"):
        index(foreign, label_key="nothing")
    assert sorted(foreign.iterdir()) == before


def test_indexing_again_sees_what_changed(foreign):
    first = index(foreign).manifest
    assert index(foreign).manifest == first
    (foreign / "train-0000.tar").unlink()
    assert index(foreign).manifest.splits["train"].num_images == 11
    manifest = read_manifest(foreign)
    assert not verify_split(foreign, manifest, "train", is_full=True, num_workers=1).bad
    assert not verify_split(foreign, manifest, "train", is_full=False, num_workers=1).problems


def test_a_folder_that_an_older_version_indexed_is_indexed_anew(foreign):
    manifest = index(foreign).manifest
    old = {"format": manifest.format, "format_version": 1, "recipe": {"source": "webdataset in place"}}
    (foreign / "dataset.json").write_text(json.dumps(old))
    (foreign / f"train.index.npy{PARTIAL_SUFFIX}").touch()  # of a killed command
    with pytest.raises(InputError, match=r"index the shards again with cbd-fast index"):
        ShardReader(foreign, "train")
    assert index(foreign).manifest == manifest == read_manifest(foreign)
    assert not list(foreign.glob(f"*{PARTIAL_SUFFIX}"))


def test_notes_hold_whatever_names_members_have(foreign):
    with tarfile.open(foreign / "train-x.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("caf\udce9.txt"))  # a sample without an image
    notes = index(foreign).manifest.notes
    assert r"train-x.tar: 1 samples without an image are passed over, such as caf\udce9.txt" in notes
    assert read_manifest(foreign).notes == notes


def test_images_that_only_rewriting_can_use_are_left_out(foreign, photos):
    with webdataset.ShardWriter(f"{foreign}/train-x%d.tar", verbose=0) as writer:
        writer.write({"__key__": "odd", "txt": "cat", "bmp": encoded(photos[0][:20, :20], "bmp")})
        writer.write({"__key__": "bad", "txt": "cat", "jpg": b"no image"})
    written = index(foreign, WriteOptions(max_bad_fraction=0.2))
    reasons = {skip.name: skip.reason for skip in written.skipped}
    assert "rewriting (--out) can use" in reasons["train-x0.tar/odd.bmp"]
    assert reasons["train-x0.tar/bad.jpg"] == "not an image, or of an unknown format"


def test_rewriting_keeps_labels_and_json(foreign, tmp_path):
    out = tmp_path / "out"
    source = webdataset_source(foreign, TarLayout())
    written = write_dataset(source, out, WriteOptions(), num_workers=2)
    assert written.manifest.splits["train"].class_counts == [12, 4, 2]
    for sample in webdataset.WebDataset(str(out / "train-000000.tar"), shardshuffle=False):
        metadata = json.loads(sample["json"])
        assert metadata["who"] == ["cat", "dog", "emu"][int(sample["cls"])]
        assert metadata["path"].endswith(f"train/{metadata['number']:03d}." + ("png" if "png" in sample else "jpeg"))


def test_our_own_shards_need_no_index(photo_shards, tmp_path):
    with pytest.raises(InputError, match="have their index already"):
        index(photo_shards)
    again = write_dataset(webdataset_source(photo_shards, TarLayout()), tmp_path / "out", WriteOptions(), num_workers=1)
    assert again.manifest.splits["train"].class_counts == [12, 5, 2]
    paths = {}
    for folder in (photo_shards, tmp_path / "out"):
        samples = webdataset.WebDataset(str(folder / "train-000000.tar"), shardshuffle=False)
        paths[folder] = sorted(json.loads(sample["json"])["path"] for sample in samples)
    assert paths[photo_shards] == paths[tmp_path / "out"]  # names survive


def test_somebody_elses_list_is_not_overwritten(foreign):
    (foreign / "skipped.csv").write_text("mine")
    with pytest.raises(InputError, match="is somebody else's"):
        index(foreign)
    assert (foreign / "skipped.csv").read_text() == "mine"


def test_a_published_set_must_be_whole_in_place_too(foreign):
    bad = WriteOptions(max_bad_fraction=0.5, is_whole=True, preset=None)
    with webdataset.ShardWriter(f"{foreign}/train-x%d.tar", verbose=0) as writer:
        writer.write({"__key__": "bad", "txt": "cat", "jpg": b"no image"})
    with pytest.raises(RunError, match="1 images cannot be used"):
        index(foreign, bad)
    assert not (foreign / "dataset.json").exists()
    assert index(foreign, WriteOptions(max_bad_fraction=0.5)).manifest.num_skipped == 1  # goes on from what was checked


def test_a_second_command_does_not_disturb_the_first(foreign, monkeypatch):
    monkeypatch.setattr("cbd_fast.folder_lock.LOCK_SECONDS", 0)

    class Second(WriteListener):
        def start(self, num_images):
            with pytest.raises(InputError, match=r"another command \(process \d+\) is writing there"):
                index(foreign)

    source = webdataset_source(foreign, TarLayout())
    written = index_dataset(source, foreign, WriteOptions(), num_workers=1, listener=Second())
    assert written.manifest.splits["train"].num_images == 18


def test_a_command_killed_at_its_end_goes_on(foreign, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(finalize, "check_is_whole", killed)
        with pytest.raises(KeyboardInterrupt):
            index(foreign)
    assert (foreign / "skipped.csv").exists()
    assert index(foreign).manifest.splits["train"].num_images == 18
