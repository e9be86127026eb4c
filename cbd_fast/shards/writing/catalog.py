"""Catalog: the images of a source, in an SQLite file, so that memory does not grow with their number."""

import hashlib
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice, pairwise
from pathlib import Path
from urllib.parse import quote

import numpy as np

from cbd_fast.errors import InputError, printable
from cbd_fast.shards.long_tail import LongTail, order_key
from cbd_fast.shards.sources.base import SPLITS, SourceImage
from cbd_fast.shards.writing.class_labels import image_of_label, number_labels

NUM_SHOWN = 3

_COLUMNS = "split, name, label, num_bytes, path, offset, mtime_ns, data, metadata, label_source, problem"
_SCHEMA = """
CREATE TABLE image (
    id INTEGER PRIMARY KEY, split TEXT, name BLOB, label, num_bytes INTEGER,
    path BLOB, offset INTEGER, mtime_ns INTEGER, data BLOB, metadata TEXT, label_source TEXT, problem TEXT
);
CREATE TABLE ordered (split TEXT, position INTEGER, image INTEGER, PRIMARY KEY (split, position)) WITHOUT ROWID;
"""


class Catalog:
    """Images by split, their classes, which of them stay, and their order in the shards."""

    def __init__(self, path: Path, is_new: bool = True) -> None:
        """Makes an empty catalog, or opens one for reading."""
        self.path = path
        if is_new:
            path.unlink(missing_ok=True)
        # some file systems have no locks; a new one is in a folder that this command has for itself
        address = f"file:{quote(str(path))}?{'nolock' if is_new else 'immutable'}=1"
        self._db = sqlite3.connect(address, uri=True, isolation_level=None)
        self._db.create_function("order_key", 3, order_key, deterministic=True)
        self.classes: list[str] = []
        if is_new:
            # after a crash the catalog is made again, so it need not survive one
            self._db.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; BEGIN;" + _SCHEMA)

    def close(self) -> None:
        """Closes the file, with all that was added in it."""
        if self._db.in_transaction:
            self._db.execute("COMMIT")
        self._db.close()

    def add(self, images: Iterable[SourceImage], classes: Sequence[str] | None) -> None:
        """Adds the images of a source.

        Args:
            images: in any order; the same images in another order make the same catalog.
            classes: names of the classes; if None, the labels are text and say them: whole numbers are the classes'
                numbers, other texts their names, sorted. Single labels of the other kind are images that cannot be
                used.

        Raises:
            InputError: an image is listed twice, a class has no training image, or the labels are no classes.
        """
        rows = (
            (
                *(p.split, os.fsencode(p.name), p.label, p.num_bytes, p.path and os.fsencode(p.path)),
                *(p.offset, p.mtime_ns, p.data, p.metadata, p.label_source, p.problem),
            )
            for p in images
        )
        self._db.executemany(f"INSERT INTO image ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
        self.classes = list(classes) if classes is not None else number_labels(self._db)
        self._check()

    def counts(self, split: str) -> np.ndarray:
        """``(num_classes,)`` int64, images per class of a split."""
        counts = np.zeros(len(self.classes), np.int64)
        for label, number in self._db.execute(
            "SELECT label, count(*) FROM image WHERE split = ? AND problem IS NULL GROUP BY label", (split,)
        ):
            counts[label] = number
        return counts

    @property
    def splits(self) -> list[str]:
        """Splits that have images, in their usual order."""
        present = {split for (split,) in self._db.execute("SELECT DISTINCT split FROM image")}
        return [split for split in SPLITS if split in present]

    def __len__(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM image").fetchone()[0])

    def missing(self) -> Iterator[tuple[str, int, str]]:
        """Split, label and name of the images that are listed but not there."""
        query = "SELECT split, label, name FROM image WHERE num_bytes IS NULL ORDER BY split, name"
        for split, label, name in self._db.execute(query):
            yield split, label, os.fsdecode(name)

    def unusable(self) -> Iterator[tuple[str, str, str]]:
        """Split, name and problem of the images that cannot be used, as is known without reading them."""
        query = "SELECT split, name, problem FROM image WHERE problem IS NOT NULL ORDER BY split, name"
        for split, name, problem in self._db.execute(query):
            yield split, os.fsdecode(name), problem

    def keep_long_tail(self, tail: LongTail, seed: int) -> list[str]:
        """Drops training images until a long tail is left, and moves some of those dropped to ``val``.

        Args:
            tail: the long tail to leave.
            seed: chooses the images that stay.

        Returns:
            Notes for people.

        Raises:
            InputError: a class would be left without images, or there is a ``val`` split already.
        """
        largest = int(self.counts("train").max())
        counts = tail.counts(largest, len(self.classes))
        if min(counts) < 1:
            raise InputError(
                f"--imbalance {tail.imbalance:g} leaves no image of the smallest class ({largest} in the largest "
                f"class): use at most {largest}"
            )
        if tail.num_val_per_class and "val" in self.splits:
            raise InputError(
                "--val-per-class makes a validation split, but there is one already (--val): leave one out"
            )
        self._db.execute("CREATE TEMP TABLE kept (label INTEGER PRIMARY KEY, number INTEGER)")
        self._db.executemany("INSERT INTO kept VALUES (?, ?)", enumerate(counts))
        self._db.execute(
            "CREATE TEMP TABLE spare AS SELECT id, rank - number AS rank FROM ("
            "  SELECT id, label, row_number() OVER (PARTITION BY label ORDER BY order_key('choose', ?, name), name) - 1"
            "  AS rank FROM image WHERE split = 'train' AND problem IS NULL) "
            "JOIN kept USING (label) WHERE rank >= number",
            (seed,),
        )
        if tail.num_val_per_class:
            chosen = "SELECT id FROM spare WHERE rank < ?"
            self._db.execute(f"UPDATE image SET split = 'val' WHERE id IN ({chosen})", (tail.num_val_per_class,))
        self._db.execute("DELETE FROM image WHERE split = 'train' AND id IN (SELECT id FROM spare)")
        self._db.execute("DROP TABLE kept")
        self._db.execute("DROP TABLE spare")
        return self._notes_on_val(tail.num_val_per_class) if tail.num_val_per_class else []

    def _notes_on_val(self, num_per_class: int) -> list[str]:
        short = [(name, n) for name, n in zip(self.classes, self.counts("val"), strict=True) if n < num_per_class]
        if len(short) == len(self.classes):
            raise InputError(f"--val-per-class {num_per_class}: the long tail leaves fewer images of every class")
        note = f"val: {num_per_class} images per class that the long tail leaves out"
        if short:
            shown = ", ".join(f"{name!r} {number}" for name, number in short[:NUM_SHOWN])
            note += f"; {len(short)} classes keep too many for training and have fewer, such as {shown}"
        return [note]

    def digest(self, is_exact: bool = False) -> str:
        """sha256 over the classes and the split, name, label, size and metadata of every image.

        Args:
            is_exact: adds everything that is known of their files: where they are and when they were changed.
        """
        digest = hashlib.sha256("\0".join(self.classes).encode("utf-8", "surrogateescape"))
        query = "SELECT split, name, label, ifnull(num_bytes, 0), metadata, problem, path, offset, mtime_ns, data"
        for row in self._db.execute(f"{query} FROM image ORDER BY split, name"):
            split, name, label, num_bytes, metadata, problem, *file = row
            digest.update(b"%s\0%s\0%d\0%d\n" % (split.encode(), name, label, num_bytes))
            for text in (metadata, problem):
                if text is not None:
                    digest.update(text.encode())
            if is_exact:
                digest.update(repr(file).encode())
        return digest.hexdigest()

    def order(self, seed: int) -> None:
        """Shuffles each split, classes mixed, so that stock readers with a small buffer see well-mixed batches."""
        self._db.execute(
            "INSERT INTO ordered SELECT split, row_number() OVER (PARTITION BY split "
            "ORDER BY order_key(split, ?, name), name) - 1 AS position, id FROM image ORDER BY split, position",
            (seed,),
        )

    def order_by_offset(self) -> None:
        """Orders each split by file, and within a file by offset."""
        self._db.execute(
            "INSERT INTO ordered SELECT split, row_number() OVER (PARTITION BY split ORDER BY path, offset) - 1 AS "
            "position, id FROM image ORDER BY split, position"
        )

    def files(self, split: str) -> list[tuple[str, int]]:
        """The files that hold the images of a split, as ``order_by_offset`` orders them, with how many each holds."""
        query = "SELECT path, count(*) FROM image WHERE split = ? GROUP BY path ORDER BY path"
        return [(os.fsdecode(path), number) for path, number in self._db.execute(query, (split,))]

    def sizes(self, split: str) -> Iterator[int]:
        """Size in bytes of each image of an ordered split."""
        query = (
            "SELECT ifnull(num_bytes, 0) FROM ordered JOIN image ON id = image WHERE ordered.split = ? "
            "ORDER BY position"
        )
        return (size for (size,) in self._db.execute(query, (split,)))

    def images(self, split: str, positions: range) -> Iterator[SourceImage]:
        """Images of an ordered split, from ``positions.start`` up to ``positions.stop``."""
        columns = "name, label, num_bytes, path, offset, mtime_ns, data, metadata, label_source, problem"
        query = (
            f"SELECT {columns} FROM ordered JOIN image ON id = image WHERE ordered.split = ? AND position >= ? AND "
            "position < ? ORDER BY position"
        )
        for name, label, num_bytes, path, *others in self._db.execute(query, (split, positions.start, positions.stop)):
            offset, mtime_ns, data, metadata, label_source, problem = others
            yield SourceImage(
                split=split,
                name=os.fsdecode(name),
                label=label,
                num_bytes=num_bytes,
                path=None if path is None else os.fsdecode(path),
                offset=offset,
                data=data,
                metadata=metadata,
                mtime_ns=mtime_ns,
                label_source=label_source,
                problem=problem,
            )

    def _check(self) -> None:
        query = "SELECT split, name FROM image GROUP BY split, name HAVING count(*) > 1 LIMIT ?"
        if twice := self._db.execute(query, (NUM_SHOWN,)).fetchall():
            names = ", ".join(f"{printable(os.fsdecode(name))!r} in {split}" for split, name in twice)
            raise InputError(f"images are listed twice, such as {names}: list each once")
        query = (
            "SELECT split, name, label FROM image WHERE problem IS NULL AND (typeof(label) != 'integer' OR label < 0"
        )
        for split, name, label in self._db.execute(f"{query} OR label >= ?) LIMIT 1", (len(self.classes),)):
            shown = f"{split}/{printable(os.fsdecode(name))}"
            raise InputError(f"{shown}: label {label!r} is no number of one of the {len(self.classes)} classes")
        counts = self.counts("train")
        problems = [
            f"{split}/{printable(name)}: {problem}" for split, name, problem in islice(self.unusable(), NUM_SHOWN)
        ]
        unusable = f"; images that cannot be used: {'; '.join(problems)}" if problems else ""
        if not counts.any():
            raise InputError(f"there are no training images{unusable}")
        if empty := [label for label, count in enumerate(counts) if not count]:
            names = ", ".join(self._shown_class(label) for label in empty[:NUM_SHOWN])
            last = f"; the largest label is {self._shown_class(len(self.classes) - 1)}" if self._are_numbers() else ""
            raise InputError(
                f"{len(empty)} of {len(self.classes)} classes have no training images, such as {names}; add images, "
                f"remove the classes, or number the labels from 0 without gaps{last}{unusable}"
            )

    def _are_numbers(self) -> bool:
        return self.classes == [str(number) for number in range(len(self.classes))]

    def _shown_class(self, label: int) -> str:
        """A class's name, with the name of an image of it if there is one."""
        image = image_of_label(self._db, label)
        return repr(printable(self.classes[label])) + (f" (that of {image})" if image else "")


def open_catalog(path: Path) -> "closing[Catalog]":
    """A finished catalog, for reading by any number of processes."""
    return closing(Catalog(path, is_new=False))


def plan_shards(sizes: Iterable[int], max_bytes: int, max_images: int) -> list[range]:
    """Positions of the images of each shard.

    Args:
        sizes: bytes of each image, in order.
        max_bytes: images of a shard have at most so many bytes; a larger image has a shard of its own.
        max_images: a shard has at most so many images.

    Returns:
        Consecutive ranges; a single empty one if there are no images.
    """
    cuts, num_bytes, number = [0], 0, -1
    for number, size in enumerate(sizes):
        is_full = num_bytes + size > max_bytes or number - cuts[-1] == max_images
        if is_full and number > cuts[-1]:
            cuts.append(number)
            num_bytes = 0
        num_bytes += size
    cuts.append(number + 1)
    return [range(start, stop) for start, stop in pairwise(cuts)]
