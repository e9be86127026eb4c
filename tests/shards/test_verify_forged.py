"""Verification of what others wrote, or are writing: nothing of theirs is touched, and readers see old or new."""

import os
import shutil
import tarfile

import numpy as np
import pytest

from cbd_fast.cli.verify import main
from cbd_fast.errors import InputError, RunError
from cbd_fast.files import PARTIAL_SUFFIX
from cbd_fast.shards import check_shard
from cbd_fast.shards.manifest import read_manifest
from cbd_fast.shards.reader import ShardReader
from cbd_fast.shards.verify import quarantine, verify_split
from tests.helpers import with_bad_images


def verify(folder, split="train", **options):
    return verify_split(folder, read_manifest(folder), split, is_full=True, num_workers=2, **options)


def files_of(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_split_that_leads_outside_writes_and_removes_nothing(forge, tmp_path):
    outside = tmp_path / "x"
    outside.mkdir()

    def rename(content):
        content["splits"]["../x/evil"] = content["splits"].pop("test") | {"index": "../x/evil.index.npy"}

    folder = forge(rename)
    shutil.copy(folder / "test.index.npy", outside / "evil.index.npy")
    with open(folder / "test-000000.tar", "r+b") as file:
        file.seek(2000)
        file.write(b"damage")
    before = files_of(tmp_path)
    for options in ([], ["--full"], ["--quarantine"]):
        with pytest.raises(InputError, match=r"no plain (path|name)"):
            main([str(folder), *options])
    assert files_of(tmp_path) == before


def test_the_number_of_marks_is_mended(forge, capsys):
    for number in (0, 1, 7):
        folder = forge(lambda content, number=number: content["splits"]["train"].update(num_quarantined=number))
        if number:
            with pytest.raises(InputError, match="run cbd-fast verify --quarantine"):
                ShardReader(folder, "train")
            with pytest.raises(RunError, match="not as they were made"):
                main([str(folder)])
            assert f"0 images are marked as bad, but dataset.json has {number}" in capsys.readouterr().out
        main([str(folder), "--quarantine"])
        assert "quarantined: train 0, test 0" in capsys.readouterr().out
        assert len(ShardReader(folder, "train").quarantined) == 0
        main([str(folder), "--full"])


def test_marks_that_the_manifest_does_not_know_are_mended(forge):
    def mark(entries):
        entries["width"][[2, 5]] = entries["height"][[2, 5]] = 0
        return entries

    folder = forge(index=mark)
    main([str(folder), "--quarantine"])  # the images are good
    assert np.array_equal(ShardReader(folder, "train").index.entries["width"] == 0, np.zeros(19, bool))


def test_what_quarantine_cannot_mend_is_no_success(forge, capsys):
    folder = forge()
    with open(folder / "train-000000.tar", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")  # in no image
    with pytest.raises(RunError, match="1 problems that no quarantine repairs"):
        main([str(folder), "--quarantine"])
    assert "sha256" in capsys.readouterr().out
    with open(folder / "train-000000.tar", "ab") as file:
        file.write(b"more")
    with pytest.raises(RunError, match="1 problems that no quarantine repairs"):
        main([str(folder), "--quarantine"])


def test_only_our_own_files_are_replaced_and_removed(photo_shards, tmp_path):
    folder, indices = with_bad_images(photo_shards, tmp_path, 2)
    np.save(folder / "train.index.1.npy", np.zeros(3))
    (folder / "train.index.2.npy").symlink_to(folder / "test.index.npy")
    np.save(folder / "faiss.index.npy", np.zeros((2, 2)))
    shutil.copy(folder / "test.index.npy", folder / "other.index.npy")  # of no split
    shutil.copy(folder / "train.index.npy", folder / "train.index.3.npy")  # left by a killed command
    (folder / f"train.index.4.npy{PARTIAL_SUFFIX}").write_bytes(b"half")
    users = ("train.index.1.npy", "train.index.2.npy", "faiss.index.npy", "other.index.npy", "test.index.npy")
    before = files_of(folder)
    quarantine(folder, {"train": verify(folder)})
    after = files_of(folder)
    assert {name: after[name] for name in users} == {name: before[name] for name in users}
    assert (folder / "train.index.2.npy").is_symlink()
    assert read_manifest(folder).splits["train"].index == "train.index.3.npy"
    assert ShardReader(folder, "train").quarantined.tolist() == indices
    assert before.keys() - after.keys() == {"train.index.npy", f"train.index.4.npy{PARTIAL_SUFFIX}"}


def test_entries_that_share_bytes_are_found(forge):
    def twice(entries):  # the same image in two classes
        entries[["offset", "size", "crc32", "width", "height"]][13] = 0
        for column in ("offset", "size", "crc32", "width", "height"):
            entries[column][13] = entries[column][2]
        return entries

    folder = forge(lambda content: content["recipe"].update(source="webdataset in place"), twice)
    of_label, problem = verify(folder).lasting_problems
    assert problem.endswith("rows 2 and 13 of the index share bytes")
    assert "has label 0, but 1 in the index" in of_label


def swap_first_and_last(entries):
    columns = ["offset", "size", "crc32", "width", "height"]
    for column in columns:
        entries[column][[0, -1]] = entries[column][[-1, 0]]
    return entries


def as_foreign(content, **options):
    content["recipe"].update(source="webdataset in place", options=options)


def with_numbers(content, **options):
    as_foreign(content, **options)
    content["classes"] = [str(number) for number in range(len(content["classes"]))]


@pytest.mark.parametrize("change", [as_foreign, with_numbers])
def test_labels_of_foreign_tars_are_compared(forge, change):
    assert verify(forge(change)).lasting_problems == []
    problems = verify(forge(change, swap_first_and_last)).lasting_problems
    assert problems
    assert all("has label" in problem and "in the index" in problem for problem in problems)


def test_a_cls_beside_labels_in_json_is_something_else(forge):
    folder = forge(lambda content: as_foreign(content, label_key="id"), swap_first_and_last)
    assert verify(folder).lasting_problems == []


def rewrite(folder, change):
    """The tar of train with other headers at the same places."""
    path = folder / "train-000000.tar"
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        for info in tar:
            if change(info):
                data[info.offset : info.offset + 512] = info.tobuf(tarfile.GNU_FORMAT)[:512]
    path.write_bytes(data)


def test_labels_are_not_believed_to_be_short(forge):
    folder = forge()

    def enlarge(info):
        if info.name.endswith(".cls"):
            info.size = 700  # reaches into what is behind it
        return info.name.endswith(".cls")

    rewrite(folder, enlarge)
    problems = verify(folder).lasting_problems
    assert problems
    assert any("has label that is too long" in problem or "no image of" in problem for problem in problems)


@pytest.mark.parametrize("content", [b"\xd9\xa1", b"+1", b" 1", b"x", b"\0", b"-", b"\x1b"])
def test_odd_labels_are_shown(forge, content):
    folder = forge()
    with tarfile.open(folder / "train-000000.tar") as tar:
        offset = next(info for info in tar if info.name.endswith(".cls")).offset_data
    with open(folder / "train-000000.tar", "r+b") as file:
        file.seek(offset)
        file.write(content[:1])
    problems = verify(folder).lasting_problems
    assert all(problem.isprintable() for problem in problems)
    assert len(problems) == 1


def test_members_of_other_kinds_are_no_images(forge):
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.GNUTYPE_SPARSE):
        folder, name = forge(), []

        def change(info, kind=kind, name=name):
            if name or not info.name.endswith((".jpg", ".png")):
                return False
            name.append(info.name)
            info.type, info.linkname = kind, "/etc/passwd"
            return True

        rewrite(folder, change)
        assert any("no image of" in problem for problem in verify(folder).lasting_problems)


def test_reads_are_bounded_by_the_tar(photo_shards, monkeypatch):
    def no_memory(*arguments):
        raise AssertionError("memory was taken")

    monkeypatch.setattr(check_shard.np, "empty", no_memory)
    with pytest.raises(OSError, match="the tar ends before it"):
        check_shard._decoded_size(photo_shards / "train-000000.tar", 512, 1 << 29, 0, None)


def test_pipes_in_place_of_tars_are_problems(forge):
    folder = forge()
    (folder / "train-000000.tar").unlink()
    os.mkfifo(folder / "train-000000.tar")
    assert "no regular file" in verify(folder).lasting_problems[0]


def test_names_are_shown_without_escapes(forge, capsys):
    folder = forge()

    def rename(info):
        info.name = "\x1b[31m" + info.name
        return not info.name.endswith(".cls")

    rewrite(folder, rename)
    with pytest.raises(RunError):
        main([str(folder)])
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert r"\x1b[31m" in out
