"""make_shards as users type it: bad files, odd images and odd names."""

import io
import json
import os
import re
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from cbd_fast.shards.png import chunk
from tests.helpers import check_by_stock_readers, encoded, make_shards, run, write
from tests.shards.writing.helpers import deep_png


def png(width: int, height: int) -> bytes:
    """A PNG that says it is that large, and is not."""
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def flipped(data: bytes) -> bytes:
    damaged = bytearray(data)
    damaged[len(data) // 2] ^= 1
    return bytes(damaged)


BAD_FILES = {
    "empty.jpg": (lambda jpeg, png_file: b"", "the file is empty"),
    "text.jpg": (lambda jpeg, png_file: b"<html>404</html>", "not an image, or of an unknown format"),
    "half.jpg": (lambda jpeg, png_file: jpeg[: len(jpeg) // 2], "cannot be decoded"),
    "almost whole.jpg": (lambda jpeg, png_file: jpeg[:-1], "cannot be decoded"),
    "damaged.png": (lambda jpeg, png_file: flipped(png_file), "cannot be decoded"),
    "bomb.png": (lambda jpeg, png_file: png(100_000, 100_000), "100000 x 100000 pixels, more than the 178956970"),
    "large.png": (lambda jpeg, png_file: png(20_000, 10_000), "20000 x 10000 pixels, more than the 178956970"),
}


@pytest.fixture
def with_bad_files(photos, pieces, tmp_path) -> Path:
    """Two good images, one bad one of each kind, a link to nowhere, a pipe, and one that may not be read."""
    folder = tmp_path / "in" / "a"
    for number in (0, 1):
        write(folder / f"{number}.jpg", pieces[number])
    png_file = encoded(photos[0][:50, :60], "png")
    for name, (make, _) in BAD_FILES.items():
        write(folder / name, make(pieces[2], png_file))
    os.symlink("nowhere", folder / "gone.jpg")
    os.mkfifo(folder / "pipe.jpg")
    return tmp_path / "in"


def test_bad_files_are_listed_with_their_reasons(with_bad_files, tmp_path):
    reasons = {name: reason for name, (_, reason) in BAD_FILES.items()}
    reasons |= {"gone.jpg": "No such file or directory", "pipe.jpg": "not a regular file"}
    locked = with_bad_files / "a" / "locked.jpg"
    locked.write_bytes((with_bad_files / "a" / "0.jpg").read_bytes())
    locked.chmod(0)
    if not os.access(locked, os.R_OK):  # everything may be read by root
        reasons["locked.jpg"] = "Permission denied"
    done = make_shards("folder", "--train", with_bad_files, "--max-bad", "1", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "out" / "skipped.csv").read_text().splitlines()
    assert lines[0] == "split,label,name,reason"
    listed = {line.split(",")[2]: line for line in lines[1:]}
    assert sorted(listed) == sorted(f"a/{name}" for name in reasons)
    for name, reason in reasons.items():
        assert reason in listed[f"a/{name}"]
    assert f"{len(reasons)} images left out" in done.stdout


def test_a_bad_image_with_an_odd_name_is_listed(pieces, tmp_path):
    name = os.fsdecode(b"b\xff\xe9\nd.jpg")
    write(tmp_path / "in" / "a" / "good.jpg", pieces[0])
    write(tmp_path / "in" / "a" / name, b"junk")
    command = ["folder", "--train", tmp_path / "in", "--max-bad", "0.5", "--out", tmp_path / "out"]
    for _ in range(2):  # written, and found there
        done = make_shards(*command)
        assert done.returncode == 0, done.stderr
        assert r"train/a/b\udcff\udce9\nd.jpg: not an image" in done.stdout
    assert os.fsencode(name) in (tmp_path / "out" / "skipped.csv").read_bytes()


def test_too_many_bad_files_end_with_1(with_bad_files, tmp_path):
    command = ["folder", "--train", with_bad_files, "--out", tmp_path / "out"]
    for options, allowed in (([], 0), (["--max-bad", "0.2"], 2), (["--strict"], 0)):
        done = make_shards(*command, *options)
        assert done.returncode == 1
        assert f"{allowed + 1} images cannot be used, and {allowed} are allowed" in done.stderr
        listed = Path(re.search(r"all that were found so far are in (\S+)", done.stderr)[1]).read_text()
        assert len(listed.splitlines()) == 1 + allowed + 1 + listed.count("\n\n")
        assert not (tmp_path / "out").exists()


def test_odd_images_come_out_as_8_bit_rgb(photos, tmp_path):
    photo = Image.fromarray(photos[0][:40, :60])
    folder = tmp_path / "in" / "a"
    folder.mkdir(parents=True)
    for mode, name in (("CMYK", "cmyk.jpg"), ("P", "palette.png"), ("RGBA", "alpha.png"), ("LA", "grey alpha.png")):
        photo.convert(mode).save(folder / name)
    Image.fromarray(photos[0][:40, :60, 0].astype(np.uint16) * 257).save(folder / "16 bit.png")
    photo.save(folder / "animated.gif", save_all=True, append_images=[photo.rotate(180)])
    photo.save(folder / "animated.webp", save_all=True, append_images=[photo.rotate(180)])
    photo.save(folder / "mislabelled.JPEG", format="PNG")
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(folder / "turned.jpg", exif=exif)
    done = make_shards("folder", "--train", tmp_path / "in", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "7 images coded anew as 8-bit RGB" in done.stdout
    assert "1 images have an orientation tag" in done.stdout
    check_by_stock_readers(tmp_path / "out", {"train": [0] * 9})
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}
    for name, data in members.items():
        if name.endswith(".json"):
            key, path = name.removesuffix(".json"), json.loads(data)["path"]
            extension = "jpg" if path == "a/turned.jpg" else "png"
            image = Image.open(io.BytesIO(members[f"{key}.{extension}"]))
            assert (image.format, image.mode, image.size) == ({"jpg": "JPEG"}.get(extension, "PNG"), "RGB", (60, 40))


def test_odd_names_survive(pieces, tmp_path):
    names = ["a b/c d.jpg", "line\nbreak.jpg", "ünïcode/日本.jpg", "v1.2/x.y.z.jpg", "one/0.jpg", "two/0.jpg"]
    names.append(os.fsdecode(b"latin-\xe9.jpg"))
    for name, piece in zip(names, pieces, strict=False):
        write(tmp_path / "in" / "a" / name, piece)
    assert make_shards("folder", "--train", tmp_path / "in", "--out", tmp_path / "out").returncode == 0
    again = run("index_shards", tmp_path / "out", "--out", tmp_path / "again")
    assert again.returncode == 0, again.stderr
    for out in (tmp_path / "out", tmp_path / "again"):
        samples = webdataset.WebDataset(str(out / "train-000000.tar"), shardshuffle=False)
        found = {json.loads(sample["json"])["path"]: sample["jpg"] for sample in samples}
        assert found == {f"a/{name}": piece for name, piece in zip(names, pieces, strict=False)}


def test_shrinking(image_folder, tmp_path):
    command = ["folder", "--train", image_folder / "train", "--short-side", "48", "--quality", "80"]
    done = make_shards(*command, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "19 images shrunk" in done.stdout
    rows = np.load(tmp_path / "out" / "train.index.npy")
    assert np.minimum(rows["width"], rows["height"]).tolist() == [48] * 19
    check_by_stock_readers(tmp_path / "out", {"train": [0] * 12 + [1] * 5 + [2] * 2})


def test_deep_turned_and_paged_images_and_what_is_said_of_them(photos, tmp_path):
    folder = tmp_path / "in" / "a"
    values = np.linspace(0, 4095, 40 * 60).astype(np.uint16).reshape(40, 60)
    write(folder / "dark.png", deep_png(values // 4))
    write(folder / "bright.png", deep_png(values))
    exif = Image.Exif()
    exif[0x0112] = 6
    write(folder / "turned.jpg", encoded(photos[0][:40, :60], exif=exif))
    pages = [Image.fromarray(photo[:40, :60]) for photo in photos]
    pages[0].save(folder / "pages.tiff", save_all=True, append_images=pages[1:])
    write(folder / "text.png", with_background_of_no_color(encoded(photos[1][:40, :60], "png")))
    command = ["folder", "--train", tmp_path / "in", "--orient"]
    done = make_shards(*command, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    for line in (
        "2 images of more than 8 bits per sample: 0 became 0 and 4095 became 255 (the lowest and highest of all",
        "1 images were turned as their orientation tags say",
        "1 images are the first of several pages or frames; the others are left out",
        "1 images stored without their metadata, which not every decoder reads past",
        "3 images coded anew as 8-bit RGB",
    ):
        assert line in done.stdout
    manifest = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert manifest["recipe"]["options"]["orient"] is True
    assert manifest["notes"][0].startswith("2 images of more than 8 bits per sample")
    check_by_stock_readers(tmp_path / "out", {"train": [0] * 5})
    sizes = np.load(tmp_path / "out" / "train.index.npy")[["width", "height"]].tolist()
    assert sorted(sizes) == [(40, 60)] + [(60, 40)] * 4
    done = make_shards(*command, "--sixteen-bit", "0,8190", "--out", tmp_path / "other")
    assert "0 became 0 and 8190 became 255 (as --sixteen-bit says" in done.stdout
    for value in ("12", "5,1", "0,nan", "all"):
        done = make_shards(*command, "--sixteen-bit", value, "--out", tmp_path / "bad")
        assert (done.returncode, "must be full, range, or LO,HI" in done.stderr) == (2, True)


def with_background_of_no_color(data: bytes) -> bytes:
    """A PNG whose metadata DALI does not read past."""
    return data[:33] + chunk(b"bKGD", b"") + data[33:]
