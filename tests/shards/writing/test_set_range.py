import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from cbd_fast.shards.manifest import read_manifest
from cbd_fast.shards.png import chunk
from cbd_fast.shards.sources.image_folder import folder_source
from cbd_fast.shards.writing import work_folder
from cbd_fast.shards.writing.dataset_writer import write_dataset
from cbd_fast.shards.writing.options import ShardSize, WriteListener, WriteOptions
from cbd_fast.shards.writing.set_range import measured_rules, measuring_rules, write_shard_range
from cbd_fast.shards.writing.validate_image import ImageRules
from cbd_fast.shards.writing.work_items import WorkItem
from tests.helpers import assert_same_files
from tests.helpers import write as write_file
from tests.shards.writing.helpers import deep_png

LOW, HIGH = 100, 3999  # of all images together; each has less


def deep_image(number: int) -> np.ndarray:
    """A grey or colour image of 12 bits, darker or brighter than the others."""
    start = LOW + 3900 * number // 16
    shape = (8, 8) if number % 2 else (8, 8, 3)
    return np.linspace(start, start + 243, int(np.prod(shape))).astype(np.uint16).reshape(shape)


@pytest.fixture(scope="module")
def deep_images(pieces, tmp_path_factory):
    """Images of 12 bits and JPEGs in two splits."""
    root = tmp_path_factory.mktemp("deep")
    for number in range(16):
        split = "train" if number % 8 < 6 else "test"
        write_file(root / split / "ab"[number % 2] / f"{number}.png", deep_png(deep_image(number)))
        write_file(root / split / "ab"[number % 2] / f"{number}.jpg", pieces[number % 8])
    return root


def write(root, out, num_workers=2, listener=None, **rules):
    source = folder_source({split: root / split for split in ("train", "test")})
    options = WriteOptions(size=ShardSize(num_images=3), rules=ImageRules(**rules), max_bad_fraction=0.2)
    return write_dataset(source, out, options, num_workers=num_workers, listener=listener)


def stored(folder) -> dict[int, np.ndarray]:
    """Pixels of the images that had more than 8 bits, by number."""
    images = {}
    for path in folder.glob("*.tar"):
        with tarfile.open(path) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}
        for name, data in members.items():
            if name.endswith(".json") and (number := json.loads(data)["path"][2:]).endswith(".png"):
                image = Image.open(io.BytesIO(members[name.replace(".json", ".png")]))
                images[int(number.removesuffix(".png"))] = np.asarray(image)
    return images


def expected(number: int, low: int, high: int) -> np.ndarray:
    pixels = ((np.clip(deep_image(number).astype(int), low, high) - low) * 255 // (high - low)).astype(np.uint8)
    return np.stack([pixels] * 3, 2) if pixels.ndim == 2 else pixels


@pytest.mark.parametrize(
    ("rules", "low", "high", "origin"),
    [
        ({}, LOW, HIGH, "the lowest and highest of all of them"),
        ({"sixteen_bit": "full"}, 0, 65535, "as --sixteen-bit says"),
        ({"sixteen_bit": "0,4095"}, 0, 4095, "as --sixteen-bit says"),
    ],
)
def test_one_range_for_all_images(deep_images, tmp_path, rules, low, high, origin):
    written = write(deep_images, tmp_path / "out", **rules)
    images = stored(tmp_path / "out")
    assert len(images) == 16
    for number, pixels in images.items():
        np.testing.assert_array_equal(pixels, expected(number, low, high))
    note = f"16 images of more than 8 bits per sample: {low} became 0 and {high} became 255 ({origin}; "
    assert [text.startswith(note) for text in read_manifest(tmp_path / "out").notes if "8 bits" in text] == [True]
    assert read_manifest(tmp_path / "out").sixteen_bit == f"{low},{high}"
    assert written.num_converted == 16


def test_same_bytes_for_every_number_of_workers(deep_images, tmp_path):
    for workers in (1, 3):
        write(deep_images, tmp_path / str(workers), num_workers=workers)
    assert_same_files(tmp_path / "1", tmp_path / "3")


class Interruption(WriteListener):
    """Ends the command as Ctrl-C does, when it says for the n-th time how far it is."""

    def __init__(self, moment):
        self.moment = moment

    def update(self, num_images):
        self.moment -= 1
        if self.moment < 0:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_interrupted_it_goes_on_to_the_same_bytes(deep_images, tmp_path):
    write(deep_images, tmp_path / "whole")
    num_interrupted = 0
    for moment in (4, 12, 20):
        try:
            write(deep_images, tmp_path / str(moment), listener=Interruption(moment))
        except KeyboardInterrupt:
            num_interrupted += 1
            write(deep_images, tmp_path / str(moment), num_workers=1)
        assert_same_files(tmp_path / "whole", tmp_path / str(moment))
    assert num_interrupted >= 2


def test_what_the_files_say_counts_if_it_is_not_to_be_the_range(tmp_path):
    for number in range(4):
        bits = chunk(b"sBIT", bytes([12] * (1 if number % 2 else 3)))
        for split in ("train", "test"):
            write_file(tmp_path / "in" / split / "a" / f"{number}.png", deep_png(deep_image(number), bits))
    for sixteen_bit, low, high in ((None, 0, 4095), ("range", LOW, deep_image(3).max())):
        write(tmp_path / "in", tmp_path / str(high), sixteen_bit=sixteen_bit)
        np.testing.assert_array_equal(stored(tmp_path / str(high))[3], expected(3, low, high))


def test_bad_images_have_no_range_and_no_part_in_it(deep_images, tmp_path):
    for path in deep_images.rglob("*.*"):
        write_file(tmp_path / "in" / path.relative_to(deep_images), path.read_bytes())
    bright = deep_png(np.full((8, 8), 60_000, np.uint16))
    write_file(tmp_path / "in" / "train" / "a" / "damaged.png", bright[:60] + b"x" + bright[61:])
    write_file(tmp_path / "in" / "train" / "a" / "gone.png", b"")
    written = write(tmp_path / "in", tmp_path / "out")
    assert sorted(skip.name for skip in written.skipped) == ["a/damaged.png", "a/gone.png"]
    np.testing.assert_array_equal(stored(tmp_path / "out")[3], expected(3, LOW, HIGH))


def test_what_could_not_be_read_is_measured_again(tmp_path):
    item = WorkItem(split="train", number=0, file="train-000000.tar", start=0, stop=1)
    path = tmp_path / "train-000000.range.json"
    for is_complete in (True, False):
        write_shard_range(path, None, is_complete)
        assert measuring_rules(ImageRules(), tmp_path, [item]).sixteen_bit == "measure"
        assert path.exists() == is_complete
    assert measuring_rules(ImageRules(sixteen_bit="full"), tmp_path, [item]) is None


def test_shards_of_another_range_are_made_again(deep_images, tmp_path):
    items = [WorkItem(split="train", number=n, file=f"train-{n:06d}.tar", start=n, stop=n + 1) for n in range(3)]
    for number, high in ((0, 7.0), (1, 9.0)):
        (tmp_path / f"train-{number:06d}.json").write_text("finished")
        (tmp_path / f"train-{number:06d}.range.json").write_text(
            json.dumps({"range": [[1.0, high], [1.0, high], False], "is_complete": True})
        )
    (tmp_path / "train-000002.json").write_text("finished, and of 8 bits")
    for low, num_left in ((1.0, 3), (0.5, 1)):
        range_file = tmp_path / "train-000000.range.json"
        range_file.write_text(json.dumps({"range": [[low, 7.0], [low, 7.0], False], "is_complete": True}))
        rules = measured_rules(ImageRules(), tmp_path, items)
        assert rules.sixteen_bit == f"{low:g},9"
        assert len(list(tmp_path.glob("train-00000?.json"))) == num_left


@pytest.mark.parametrize("is_deep", [False, True])
def test_no_shard_is_made_twice(deep_images, pieces, tmp_path, monkeypatch, is_deep):
    for number, piece in enumerate(pieces):
        write_file(tmp_path / "in" / ("train", "test")[number % 2] / "a" / f"{number}.jpg", piece)
    (tmp_path / "in" / "train" / "a" / "gone.jpg").symlink_to("nowhere")  # which may be there the next time
    if is_deep:
        write_file(tmp_path / "in" / "test" / "a" / "deep.png", deep_png(deep_image(3)))
    made = []

    def record(plan, *arguments):
        made.append([item.name for item in plan.items])
        return make_shards(plan, *arguments)

    make_shards = work_folder.make_shards
    monkeypatch.setattr(work_folder, "make_shards", record)
    assert len(write(tmp_path / "in", tmp_path / "out").skipped) == 1
    assert len(made[0]) == 4
    assert [len(names) for names in made[1:]] == [1] * is_deep
