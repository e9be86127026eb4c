"""Shards of strangers: index, manifest and tars, read as training, verification and indexing read them."""

import io
import json
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from cbd_fast.cli.verify import main as verify_main
from cbd_fast.errors import InputError, RunError
from cbd_fast.shards.index import INDEX_DTYPE
from cbd_fast.shards.manifest import read_manifest
from cbd_fast.shards.reader import ShardReader
from cbd_fast.shards.sources.image_folder import folder_source
from cbd_fast.shards.sources.webdataset import TarLayout, webdataset_source
from cbd_fast.shards.verify import verify_split
from cbd_fast.shards.writing.dataset_writer import write_dataset
from cbd_fast.shards.writing.options import WriteOptions
from tests.helpers import encoded

from .mutate import ODD_INTEGERS, json_bytes, mutated_bytes, mutated_json

OURS = (InputError, RunError)
LOADER_EVERY, QUARANTINE_EVERY = 8, 10  # cases; both take longer


def make_shards(folder: Path) -> None:
    """Small shards at ``folder / "shards"``: three classes of 6, 3 and 2 images, two of each for testing."""
    rng = np.random.default_rng(0)
    for split, counts in {"train": (6, 3, 2), "test": (2, 2, 2)}.items():
        for label, count in enumerate(counts):
            for number in range(count):
                extension = ("jpg", "png", "webp")[number % 3]
                path = folder / "images" / split / f"class {label}" / f"{number}.{extension}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encoded(rng.integers(0, 256, (30 + number, 40, 3), np.uint8), extension))
    source = folder_source({split: folder / "images" / split for split in ("train", "test")})
    write_dataset(source, folder / "shards", WriteOptions(), num_workers=1)


class ShardTarget:
    """Files of a folder of shards, mutated; what opens is read to the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "shards"
        self.files = {path.name: path.read_bytes() for path in self.folder.iterdir() if path.is_file()}
        self.manifest = json.loads(self.files["dataset.json"])

    def check(self, case: int) -> None:
        """Opens and reads the shards as training does, and as verification does."""
        with suppress(*OURS):
            shards = ShardReader(self.folder, "train")
            for index in range(len(shards)):
                with suppress(OSError):
                    shards.read(index)
                assert shards.name(index).isprintable()
            shards.read_ahead(range(len(shards)))
        with suppress(*OURS):
            manifest = read_manifest(self.folder)
            for split in manifest.splits:
                verify_split(self.folder, manifest, split, is_full=case % 2 == 0, num_workers=1)
        if case % LOADER_EVERY == 0:
            self.load()
        if case % QUARANTINE_EVERY == 0:
            with suppress(*OURS):
                verify_main([str(self.folder), "--quarantine", "--workers", "1"])

    def load(self) -> None:
        """A batch of the shards."""
        from cbd_fast import Loader

        settings = {"batch_size": 4, "image_size": 32, "device": "cpu", "num_threads": 1, "decoder": "torch"}
        with (
            suppress(*OURS),
            Loader(self.folder, sampling="class_balanced", on_bad_image=lambda *bad: None, **settings) as loader,
        ):
            loader.batch(0)

    def forged(self, index: bytes) -> dict[str, bytes]:
        """The index with a manifest that knows its sum."""
        manifest = json.loads(self.files["dataset.json"])
        record = manifest["splits"]["train"]
        record["index_crc32"] = zlib.crc32(index)
        with suppress(Exception):
            entries = np.load(io.BytesIO(index), allow_pickle=False)
            record["num_images"] = record["shards"][0]["num_images"] = len(entries)
            record["class_counts"] = np.bincount(entries["label"], minlength=3)[:1000].tolist()
            record["num_quarantined"] = int((entries["width"] == 0).sum())
        return {"train.index.npy": index, "dataset.json": json.dumps(manifest).encode()}


class IndexTarget(ShardTarget):
    """The class index."""

    def mutate(self, rng: np.random.Generator) -> dict[str, bytes]:
        """Files by name."""
        data = self.files["train.index.npy"]
        kind = rng.integers(4)
        if kind == 0:
            return {"train.index.npy": mutated_bytes(rng, data)}
        if kind == 1:
            return self.forged(mutated_bytes(rng, data))
        entries = np.load(io.BytesIO(data)).copy()
        for _ in range(1 + rng.integers(3)):
            self._mutate_entries(rng, entries)
        if kind == 3:
            entries = self._other_array(rng, entries)
        buffer = io.BytesIO()
        (np.savez if rng.integers(20) == 0 else np.save)(buffer, entries)
        return self.forged(buffer.getvalue())

    def _mutate_entries(self, rng: np.random.Generator, entries: np.ndarray) -> None:
        row, other = rng.integers(len(entries), size=2)
        kind = rng.integers(4)
        names = INDEX_DTYPE.names or ()
        column = names[rng.integers(len(names))]
        if kind == 0:
            entries[[row, other]] = entries[[other, row]]
        elif kind == 1:
            entries[column][row] = entries[column][other]
        else:
            number = ODD_INTEGERS[rng.integers(len(ODD_INTEGERS))]
            entries[column][row if kind == 2 else slice(None)] = number & np.iinfo(INDEX_DTYPE[column]).max

    def _other_array(self, rng: np.random.Generator, entries: np.ndarray) -> np.ndarray:
        others = (
            lambda: entries.reshape(-1, 1),
            lambda: np.asfortranarray(np.stack([entries, entries])),
            lambda: entries.astype(INDEX_DTYPE.newbyteorder(">")),
            lambda: entries.view(np.uint64),
            lambda: entries[["offset", "label"]].copy(),
            lambda: entries[:0],
            lambda: entries[rng.integers(len(entries), size=int(rng.integers(1, 100)))],
            lambda: np.sort(entries[rng.integers(len(entries), size=40)], order="label"),
        )
        return others[rng.integers(len(others))]()


class ManifestTarget(ShardTarget):
    """dataset.json."""

    def mutate(self, rng: np.random.Generator) -> dict[str, bytes]:
        """Files by name."""
        if rng.integers(3) == 0:
            return {"dataset.json": mutated_bytes(rng, self.files["dataset.json"])}
        data = json_bytes(rng, mutated_json(rng, self.manifest))
        if rng.integers(10) == 0:
            data = mutated_bytes(rng, data)
        return {"dataset.json": data}


class TarTarget(ShardTarget):
    """The tar of the training images, with an index, and indexed anew as somebody else's."""

    def mutate(self, rng: np.random.Generator) -> dict[str, bytes]:
        """Files by name."""
        name = "train-000000.tar"
        data = mutated_bytes(rng, self.files[name]) if rng.integers(3) == 0 else self._mutated_tar(rng)
        manifest = json.loads(self.files["dataset.json"])
        if rng.integers(4):
            manifest["splits"]["train"]["shards"][0]["num_bytes"] = len(data)
        return {name: data, "dataset.json": json.dumps(manifest).encode()}

    def check(self, case: int) -> None:
        super().check(case)
        for layout in (TarLayout(), TarLayout(label_key="path")):
            with suppress(*OURS):
                source = webdataset_source(self.folder, layout)
                for image in source.images():
                    with suppress(OSError, ValueError):
                        image.read()

    def _mutated_tar(self, rng: np.random.Generator) -> bytes:
        with tarfile.open(fileobj=io.BytesIO(self.files["train-000000.tar"])) as tar:
            parts = [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
        chosen = set(rng.integers(len(parts), size=1 + rng.integers(3)).tolist())
        pieces = []
        for number, (member, content) in enumerate(parts):
            pieces += self._mutated_member(rng, member, content) if number in chosen else [member.tobuf(), content]
            pieces.append(bytes(-sum(map(len, pieces)) % tarfile.BLOCKSIZE))
        return b"".join(pieces) + bytes(2 * tarfile.BLOCKSIZE)

    def _mutated_member(self, rng: np.random.Generator, member: tarfile.TarInfo, content: bytes) -> Iterator[bytes]:
        kind = rng.integers(6)
        if kind == 0:
            content = mutated_bytes(rng, content)
            member.size = len(content)
        elif kind == 1:
            content = json_bytes(rng, mutated_json(rng, {"path": "a/b.jpg", "label": 3}))
            member.size = len(content)
        elif kind == 2:
            number = ODD_INTEGERS[rng.integers(len(ODD_INTEGERS))]
            records = rng.choice([b"size", b"path", b"GNU.sparse.size", b"GNU.sparse.map", b"GNU.sparse.realsize"])
            record = b" %s=%d\n" % (bytes(records), number)
            extended = tarfile.TarInfo("pax")
            extended.type = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME)[rng.integers(3)]
            record = b"%d" % (len(record) + 2) + record
            extended.size = len(record)
            yield extended.tobuf() + record + bytes(-len(record) % tarfile.BLOCKSIZE)
        header = bytearray(member.tobuf()[: tarfile.BLOCKSIZE])
        if kind == 3:
            header[156:157] = rng.choice(list(b"0123456789xgKLSV\0D"), size=1).astype(np.uint8).tobytes()
        elif kind == 4:
            number = ODD_INTEGERS[rng.integers(len(ODD_INTEGERS))]
            header[124:136] = (b"\x80" if number >= 0 else b"\xff") + (number & 2**88 - 1).to_bytes(11, "big")
        elif kind == 5:
            header = bytearray(mutated_bytes(rng, bytes(header))[: tarfile.BLOCKSIZE].ljust(tarfile.BLOCKSIZE, b"\0"))
        if rng.integers(5):
            header[148:156] = b" " * 8
            header[148:156] = b"%06o\0 " % (sum(header) & 0o777777)
        yield bytes(header)
        yield content
