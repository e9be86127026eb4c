"""Manifests that somebody else wrote: names stay in the folder, sizes and numbers are bounded."""

import json
import os

import pytest

from cbd_fast.errors import InputError
from cbd_fast.shards import manifest as manifest_module
from cbd_fast.shards.manifest import file_size, is_index_name, is_indexed_in_place, read_manifest
from cbd_fast.shards.reader import ShardReader


def set_file(name):
    return lambda content: content["splits"]["train"]["shards"][0].update(file=name)


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../other/train.tar", "a/../../b.tar", "", ".", "a//b.tar", "./a.tar", "a/", "a\x1b[2J.tar",
     "a\nb.tar", "a\0b.tar", "\u202egnp.tar", "n" * 256, "a/" * 1001 + "b"],
)  # fmt: skip
def test_shards_lie_below_the_folder(forge, name):
    folder = forge(set_file(name))
    with pytest.raises(InputError, match=r"dataset\.json: not a manifest of shards \(splits\.train\.shards") as refused:
        read_manifest(folder)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 1000


def test_paths_of_records_that_never_were_in_a_manifest_are_checked_too(photo_shards, tmp_path):
    record = read_manifest(photo_shards).splits["train"]
    outside = {"file": "../x", "index": "/x"}
    with pytest.raises(ValueError, match="no plain path"):
        record.shards[0].model_copy(update=outside).path(tmp_path)
    with pytest.raises(ValueError, match="no plain path"):
        record.model_copy(update=outside).index_path(tmp_path)
    assert record.shards[0].path(tmp_path) == tmp_path / "train-000000.tar"


@pytest.mark.parametrize("split", ["../x/evil", "/tmp/evil", "", ".hidden", "a b", "a\x1b[2J", "n" * 101, "dé", "-x"])
def test_splits_have_plain_names(forge, split):
    def rename(content):
        content["splits"][split] = content["splits"].pop("test") | {"index": f"{split}.index.npy"}

    with pytest.raises(InputError, match="not a manifest of shards") as refused:
        read_manifest(forge(rename))
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    ("name", "is_one"),
    [("train.index.npy", True), ("train.index.12.npy", True), ("test.index.npy", False), ("train.npy", False),
     ("train.index.-1.npy", False), ("train.index.1.npy.bak", False), ("train.index.1234567890.npy", False),
     ("a/train.index.npy", False), ("train.index.\u0661.npy", False), ("trainXindex.npy", False)],
)  # fmt: skip
def test_an_index_has_the_name_of_its_split(forge, name, is_one):
    assert is_index_name(name, "train") == is_one
    folder = forge(lambda content: content["splits"]["train"].update(index=name))
    if is_one:
        assert read_manifest(folder).splits["train"].index == name
    else:
        with pytest.raises(InputError, match="is no name of an index of train"):
            read_manifest(folder)


def set_in_train(**values):
    return lambda content: content["splits"]["train"].update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_in_train(class_counts=[12, 5]), "2 counts for 3 classes"),
        (set_in_train(class_counts=[12, 5, -2]), "greater than or equal to 0"),
        (set_in_train(class_counts=["x"] * 1000), "class_counts.0"),
        (set_in_train(num_images=1 << 70), "less than"),
        (set_in_train(num_quarantined=-1), "num_quarantined"),
        (set_in_train(index_crc32=1 << 32), "index_crc32"),
        (lambda content: content["splits"]["train"]["shards"][0].update(num_bytes=-1), "num_bytes"),
        (lambda content: content["splits"]["train"]["shards"][0].update(sha256="0" * 63), "sha256"),
        (lambda content: content["splits"]["train"].update(shards=content["splits"]["test"]["shards"]), "listed twice"),
        (lambda content: content["splits"].pop("train"), "no split 'train'"),
        (lambda content: content["splits"].update({f"s{n}": {} for n in range(200)}), "202 splits"),
        (lambda content: content.update(format="\x1b[2J" + "x" * 10_000), "format"),
        (lambda content: content.update(format_version=True), "format_version True"),
        (lambda content: content.update(format_version=10**4000), "a newer version"),
        (lambda content: content.update(classes="abc"), "classes"),
    ],
)
def test_numbers_are_bounded_and_agree(forge, change, message):
    with pytest.raises(InputError, match=message) as refused:
        read_manifest(forge(change))
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 600


@pytest.mark.parametrize(
    "data",
    [b"[" * 200_000, b'{"a":' * 200_000, b'{"format": NaN}', b'{"format": ' + b"9" * 5000 + b"}", b"\xef\xbb\xbf{}",
     "{}".encode("utf-16"), b'{"format": "\xff"}', b'{"format": "\\ud800"}', b"", b"\0" * 1000],
)  # fmt: skip
def test_what_no_parser_can_read_is_refused_in_one_line(tmp_path, data):
    (tmp_path / "dataset.json").write_bytes(data)
    for read in (read_manifest, is_indexed_in_place):
        with pytest.raises(InputError, match=r"dataset\.json: not a manifest of shards") as refused:
            read(tmp_path)
        assert str(refused.value).isprintable()


def test_a_file_that_is_saved_with_a_mark_is_told(photo_shards, tmp_path):
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "dataset.json").write_bytes((photo_shards / "dataset.json").read_text().encode(encoding))
        with pytest.raises(InputError, match=r"byte order mark.*plain UTF-8"):
            read_manifest(tmp_path)


def test_a_huge_file_is_not_read(tmp_path):
    with open(tmp_path / "dataset.json", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(InputError, match="1,099,511,627,776 bytes, and at most 33,554,432 are read"):
        read_manifest(tmp_path)


def test_the_limit_is_that_of_the_file(photo_shards, monkeypatch):
    size = (photo_shards / "dataset.json").stat().st_size
    monkeypatch.setattr(manifest_module, "MAX_MANIFEST_BYTES", size)
    read_manifest(photo_shards)
    monkeypatch.setattr(manifest_module, "MAX_MANIFEST_BYTES", size - 1)
    with pytest.raises(InputError, match="bytes, and at most"):
        read_manifest(photo_shards)


def test_a_pipe_is_no_file(photo_shards, tmp_path):
    os.mkfifo(tmp_path / "dataset.json")  # reading it would wait for ever
    with pytest.raises(InputError, match=r"no dataset\.json"):
        read_manifest(tmp_path)
    with pytest.raises(InputError, match="no regular file"):
        is_indexed_in_place(tmp_path)
    with pytest.raises(OSError, match="no regular file"):
        file_size(tmp_path / "dataset.json")
    with pytest.raises(OSError, match="no regular file"):
        file_size(tmp_path)


def test_links_to_tars_elsewhere_are_read(photo_shards, tmp_path):
    folder = tmp_path / "links"
    (folder / "sub").mkdir(parents=True)
    for path in photo_shards.iterdir():
        (folder / path.name).symlink_to(path)
    assert len(ShardReader(folder, "train")) == 19
    (folder / "sub" / "train 1.tar").symlink_to(photo_shards / "train-000000.tar")  # a name of somebody else's
    content = json.loads((photo_shards / "dataset.json").read_text())
    set_file("sub/train 1.tar")(content)
    (folder / "dataset.json").unlink()
    (folder / "dataset.json").write_text(json.dumps(content))
    shards = ShardReader(folder, "train")
    assert shards.read(0).tobytes() == ShardReader(photo_shards, "train").read(0).tobytes()
