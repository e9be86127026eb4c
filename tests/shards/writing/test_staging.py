"""Where shards are written, and what is done on file systems that lack something."""

import errno
import mmap
import os
import sqlite3
import subprocess
from contextlib import closing

import pytest

from cbd_fast.errors import InputError, RunError
from cbd_fast.files import PARTIAL_SUFFIX
from cbd_fast.shards.sources.base import SourceImage
from cbd_fast.shards.sources.image_folder import folder_source
from cbd_fast.shards.writing.catalog import Catalog
from cbd_fast.shards.writing.dataset_writer import STAGED_FOLDER, write_dataset
from cbd_fast.shards.writing.options import ShardSize, WriteListener, WriteOptions
from cbd_fast.shards.writing.tar_writer import ShardWriter
from cbd_fast.shards.writing.validate_image import ImageRules
from cbd_fast.shards.writing.work_items import CATALOG_NAME, WorkItem, WorkPlan
from tests.helpers import assert_same_files


def write(root, out, listener=None, seed=0):
    source = folder_source({split: root / split for split in ("train", "test")})
    options = WriteOptions(size=ShardSize(num_images=3), seed=seed)
    return write_dataset(source, out, options, num_workers=1, listener=listener)


class Interruption(WriteListener):
    """Ends the command, as Ctrl-C does, when a number of images are done."""

    def __init__(self, num_images):
        self.num_images, self.notes = num_images, []

    def note(self, message):
        self.notes.append(message)

    def update(self, num_images):
        if num_images >= self.num_images:
            raise KeyboardInterrupt


@pytest.fixture
def no_other_volume(tmp_path, monkeypatch):
    """``mounted`` is as if it were another file system: nothing is moved into it, and it cannot be replaced."""
    volume, replace = tmp_path / "mounted", os.replace
    volume.mkdir()

    def replace_within(source, target):
        places = [str(path).startswith(f"{volume}/") for path in (source, target)]
        if str(target) == str(volume):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(source), None, str(target))
        if places[0] != places[1]:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(source), None, str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_within)
    return volume


def test_an_out_that_is_there_is_written_to_where_it_is(image_folder, tmp_path, no_other_volume):
    write(image_folder, tmp_path / "plain")
    with pytest.raises(KeyboardInterrupt):
        write(image_folder, no_other_volume, Interruption(4))
    assert {path.name for path in tmp_path.iterdir()} == {"plain", "mounted"}
    assert (no_other_volume / STAGED_FOLDER).is_dir()
    assert not (no_other_volume / "dataset.json").exists()
    assert write(image_folder, no_other_volume).is_new
    assert_same_files(tmp_path / "plain", no_other_volume)
    assert not write(image_folder, no_other_volume).is_new
    assert_same_files(tmp_path / "plain", no_other_volume)
    with pytest.raises(InputError, match="seed 0 there, 1 asked for"):
        write(image_folder, no_other_volume, seed=1)
    assert_same_files(tmp_path / "plain", no_other_volume)


def test_a_real_file_system_of_its_own(image_folder, tmp_path):
    volume = tmp_path / "mounted"
    volume.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", volume], capture_output=True).returncode:
        pytest.skip("nothing may be mounted here")
    try:
        write(image_folder, volume)
        write(image_folder, tmp_path / "plain")
        assert_same_files(tmp_path / "plain", volume)
        assert {path.name for path in tmp_path.iterdir()} == {"plain", "mounted"}
    finally:
        subprocess.run(["umount", volume], check=True)


def test_what_was_put_beside_the_shards_meanwhile_stays(image_folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(KeyboardInterrupt):
        write(image_folder, out, Interruption(0))  # before the first shard is there
    (out / "thesis.tex").write_text("three years")
    (out / "train-000007.tar").write_text("half of a shard")
    write(image_folder, out, seed=1)  # of which nothing was done: it begins anew
    assert (out / "thesis.tex").read_text() == "three years"
    assert not (out / "train-000007.tar").exists()


def test_bad_input_leaves_an_empty_out_empty(tmp_path):
    (tmp_path / "in" / "train" / "a").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError):
        write_dataset(
            folder_source({"train": tmp_path / "in" / "train"}), tmp_path / "out", WriteOptions(), num_workers=1
        )
    assert not list((tmp_path / "out").iterdir())


def test_half_made_shards_beside_an_out_that_came_later_are_named(image_folder, tmp_path):
    out, half = tmp_path / "out", tmp_path / f"out{PARTIAL_SUFFIX}"
    with pytest.raises(KeyboardInterrupt):
        write(image_folder, out, Interruption(4))
    out.mkdir()
    listener = Interruption(1000)
    write(image_folder, out, listener)
    assert half.is_dir()
    assert any(str(half) in note and "may be removed" in note for note in listener.notes)


def test_no_locks_are_needed(tmp_path):
    """Nobody's lock of the file is in the way, as none is asked for."""
    images = [SourceImage(split="train", name="a/1.jpg", label=0, num_bytes=5, path="/a/1.jpg")]
    with closing(Catalog(tmp_path / CATALOG_NAME)) as catalog:
        catalog.add(images, ["a"])
        with closing(sqlite3.connect(tmp_path / CATALOG_NAME, timeout=0)) as other:
            other.execute("BEGIN EXCLUSIVE")


def test_no_file_need_be_shared_in_memory(image_folder, tmp_path, monkeypatch):
    write(image_folder, tmp_path / "plain")
    of_all = mmap.mmap

    def only_of_memory(descriptor, *arguments, **options):
        if descriptor >= 0 and not os.readlink(f"/proc/self/fd/{descriptor}").startswith("/memfd:"):
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        return of_all(descriptor, *arguments, **options)

    monkeypatch.setattr(mmap, "mmap", only_of_memory)
    write(image_folder, tmp_path / "out")
    assert_same_files(tmp_path / "plain", tmp_path / "out")


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_what_the_process_lacks_is_no_bad_image(tmp_path, number):
    def lacking(self):
        raise OSError(number, os.strerror(number))

    item = WorkItem(split="train", number=0, file="train-000000.tar", start=0, stop=1)
    plan = WorkPlan(
        folder=tmp_path, work=tmp_path, catalog=tmp_path, rules=ImageRules(), roots=[], items=[item], num_bad_allowed=9
    )
    image = type("Image", (), {"read": lacking, "label": 0, "split": "train", "name": "a/1.jpg"})()
    writer = ShardWriter(plan, lambda: None, lambda skipped: None)
    for do in (writer.make, writer.measure):
        with pytest.raises(OSError, match=os.strerror(number)):
            do(item, [image])
    assert not list(tmp_path.iterdir())


def test_a_full_disk_says_how_much_is_missing_and_what_goes_on(image_folder, tmp_path):
    (tmp_path / "mounted").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=150k", "none", tmp_path / "mounted"]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("nothing may be mounted here")
    try:
        with pytest.raises(
            RunError,
            match=r"/mounted/\S+: No space left on device \(needs [\d.]+ MB, [\d.]+ MB left there\); when that",
        ) as error:
            write(image_folder, tmp_path / "mounted")
        assert "\n" not in str(error.value)
        subprocess.run(["mount", "-o", "remount,size=16m", tmp_path / "mounted"], check=True)
        write(image_folder, tmp_path / "mounted")
    finally:
        subprocess.run(["umount", tmp_path / "mounted"], check=True)
