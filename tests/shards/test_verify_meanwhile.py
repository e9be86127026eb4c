"""Quarantines while others write or read: one command at a time, and readers see old or new."""

import json
import os
import shutil
import threading
import time

import pytest

from cbd_fast import folder_lock
from cbd_fast.cli.verify import main
from cbd_fast.errors import InputError
from cbd_fast.folder_lock import locked_folder
from cbd_fast.shards import check_shard
from cbd_fast.shards import verify as verify_module
from cbd_fast.shards.manifest import read_manifest
from cbd_fast.shards.reader import ShardReader
from cbd_fast.shards.verify import quarantine, verify_split
from tests.helpers import with_bad_images


def verify(folder, split="train"):
    return verify_split(folder, read_manifest(folder), split, is_full=True, num_workers=2)


def files_of(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_who_comes_second_is_told_by_whom(forge, monkeypatch):
    folder = forge()
    monkeypatch.setattr(folder_lock, "LOCK_SECONDS", 0.1)
    before = files_of(folder)
    with locked_folder(folder):
        main([str(folder)])  # to look is free
        with pytest.raises(InputError, match=rf"{folder}.*process {os.getpid()}"):
            main([str(folder), "--quarantine"])
    assert files_of(folder) == before
    with pytest.raises(InputError, match="is not a folder"):
        main([str(folder / "none"), "--quarantine"])
    assert not (folder / "none").exists()


def test_two_quarantines_at_once_both_end_well(photo_shards, tmp_path, capsys):
    folder, indices = with_bad_images(photo_shards, tmp_path, 3)
    threads = [threading.Thread(target=main, args=([str(folder), "--quarantine"],)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert capsys.readouterr().out.count("quarantined: train 3, test 0") == 2
    assert ShardReader(folder, "train").quarantined.tolist() == indices
    assert sorted(path.name for path in folder.glob("*.npy")) == ["test.index.npy", "train.index.1.npy"]


def test_what_was_changed_meanwhile_is_not_overwritten(photo_shards, tmp_path):
    folder, _ = with_bad_images(photo_shards, tmp_path, 2)
    findings = {"train": verify(folder)}
    quarantine(folder, findings)
    before = files_of(folder)
    with pytest.raises(InputError, match="changed by another command meanwhile"):
        quarantine(folder, findings)
    assert files_of(folder) == before


@pytest.mark.parametrize("moment", ["write_entries", "file_crc32", "write_atomically", "_remove_old"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_quarantine_that_is_stopped_leaves_old_or_new(photo_shards, tmp_path, monkeypatch, moment, when):
    folder, indices = with_bad_images(photo_shards, tmp_path, 2)
    call = getattr(verify_module, moment)

    def stop(*arguments):
        if when == "after":
            call(*arguments)
        raise KeyboardInterrupt

    findings = {"train": verify(folder)}
    with monkeypatch.context() as patch:
        patch.setattr(verify_module, moment, stop)
        with pytest.raises(KeyboardInterrupt):
            quarantine(folder, findings)
    is_new = (moment, when) in (("write_atomically", "after"), ("_remove_old", "before"), ("_remove_old", "after"))
    assert ShardReader(folder, "train").quarantined.tolist() == (indices if is_new else [])
    main([str(folder), "--quarantine"])
    assert ShardReader(folder, "train").quarantined.tolist() == indices
    assert len(list(folder.glob("train*.npy*"))) == 1 or is_new


def test_readers_see_old_or_new_all_the_time(photo_shards, tmp_path):
    folder, indices = with_bad_images(photo_shards, tmp_path, 2)
    good, bad = photo_shards / "train-000000.tar", tmp_path / "bad.tar"
    shutil.copy(folder / "train-000000.tar", bad)
    stopped, seen, wrong = threading.Event(), set(), []

    def read():
        while not stopped.is_set():
            try:
                seen.add(tuple(ShardReader(folder, "train").quarantined.tolist()))
            except Exception as error:
                wrong.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    for tar in [bad, good] * 15:
        shutil.copy(tar, folder / "copy.tar")
        os.replace(folder / "copy.tar", folder / "train-000000.tar")
        quarantine(folder, {"train": verify(folder)})
    stopped.set()
    thread.join()
    assert wrong == []
    assert seen == {(), tuple(indices)}


def test_a_verification_that_is_stopped_ends_at_once(photo_shards, monkeypatch):
    checked, decoded_size, has_begun = [], check_shard._decoded_size, threading.Event()

    def slowly(*where):
        checked.append(where)
        has_begun.set()
        time.sleep(0.05)
        return decoded_size(*where)

    def interrupted(pool, function, numbers):
        pool.submit(function, 0)
        has_begun.wait()
        raise KeyboardInterrupt

    monkeypatch.setattr(check_shard, "_decoded_size", slowly)
    monkeypatch.setattr(verify_module.ThreadPoolExecutor, "map", interrupted)
    with pytest.raises(KeyboardInterrupt):
        verify(photo_shards)
    assert len(checked) < 5


def test_a_manifest_is_whole_after_a_quarantine(photo_shards, tmp_path):
    folder, _ = with_bad_images(photo_shards, tmp_path, 1)
    manifest = quarantine(folder, {"train": verify(folder)})
    assert json.loads((folder / "dataset.json").read_text()) == manifest.model_dump()
