"""Equal images of a dataset: between its splits, where they make results too good, and within them."""

import csv
import hashlib
import io
import os
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cbd_fast.errors import printable
from cbd_fast.files import write_atomically
from cbd_fast.shards.writing.catalog import Catalog, open_catalog
from cbd_fast.shards.writing.work_items import CATALOG_NAME, WorkItem, entries_path

DUPLICATES_NAME = "duplicates.csv"
DUPLICATES_COLUMNS = ("group", "split", "label", "name")
NUM_SHOWN = 3


@dataclass(frozen=True, order=True)
class Copy:
    """One of several equal images.

    Attributes:
        item: number of its shard among those of all splits.
        position: of the image in the catalog's order.
        split: its split.
        label: number of its class.
    """

    item: int
    position: int
    split: str
    label: int


def note_duplicates(folder: Path, work: Path, items: list[WorkItem], in_place: bool) -> list[str]:
    """Notes for people on the equal images of a dataset whose shards are made.

    Those that are in several splits, or that have several labels, are listed in ``DUPLICATES_NAME``, which is there
    only if there are any.

    Args:
        folder: the folder of the shards.
        work: the work folder, with the catalog and the entries of each shard.
        items: all shards, those of a split together.
        in_place: whether the shards are somebody else's; then nothing is listed in their folder.

    Raises:
        OSError: a shard cannot be read, or the list not be written.
    """
    splits = list(dict.fromkeys(item.split for item in items))
    with open_catalog(work / CATALOG_NAME) as catalog:
        groups = find_duplicates(folder, work, items, catalog if in_place else None)
        if not in_place:
            listed = [group for group in groups if len({(copy.split, copy.label) for copy in group}) > 1]
            _write_list(folder / DUPLICATES_NAME, listed, catalog)
        where = "" if in_place else f"; all are in {DUPLICATES_NAME}"
        return [*_notes_between(groups, splits, catalog, where), *_notes_within(groups, splits, where)]


def find_duplicates(
    folder: Path, work: Path, items: list[WorkItem], catalog: Catalog | None = None
) -> list[list[Copy]]:
    """Groups of equal images, in the order of their first ones: of the same size and crc32, and then byte for byte.

    Args:
        folder: the folder of the shards.
        work: the work folder, with the entries of each shard.
        items: all shards.
        catalog: tells where in its order an image of somebody else's shard is; our own shards say it themselves.
    """
    repeated = _repeated_keys(work, items)
    groups: defaultdict[bytes, list[Copy]] = defaultdict(list)
    for number, item in enumerate(items if len(repeated) else ()):
        entries = np.load(entries_path(work, item), allow_pickle=False)
        keys = _keys(entries)
        at = np.minimum(np.searchsorted(repeated, keys), len(repeated) - 1)
        candidates = entries[repeated[at] == keys]
        if not len(candidates):
            continue
        positions: dict[int | None, int] = {}
        if catalog is not None:
            images = catalog.images(item.split, item.positions)
            positions = {image.offset: position for position, image in zip(item.positions, images, strict=True)}
        with open(folder / item.file, "rb", buffering=0) as file:
            for entry in candidates:
                start, size = int(entry["offset"]) - tarfile.BLOCKSIZE, int(entry["size"])
                member = os.pread(file.fileno(), tarfile.BLOCKSIZE + size, start)
                # the name in our own shards is that number and the kind of file
                position = positions[start + tarfile.BLOCKSIZE] if positions else int(member[: member.index(b".")])
                digest = hashlib.sha256(memoryview(member)[tarfile.BLOCKSIZE :]).digest()
                groups[digest].append(Copy(number, position, item.split, int(entry["label"])))
    return [group for group in groups.values() if len(group) > 1]


def _repeated_keys(work: Path, items: list[WorkItem]) -> np.ndarray:
    """``(n,)`` uint64, sorted, the keys that more than one image has."""
    keys = np.concatenate([_keys(np.load(entries_path(work, item), allow_pickle=False)) for item in items])
    keys.sort()
    return np.unique(keys[1:][keys[1:] == keys[:-1]])


def _keys(entries: np.ndarray) -> np.ndarray:
    """``(n,)`` uint64, equal for images of the same size and crc32."""
    return entries["size"].astype(np.uint64) << np.uint64(32) | entries["crc32"]


def _notes_between(groups: list[list[Copy]], splits: list[str], catalog: Catalog, where: str) -> Iterator[str]:
    for number, split in enumerate(splits):
        for earlier in splits[:number]:
            pairs, num_of_other_label = [], 0
            for group in groups:
                others = [copy for copy in group if copy.split == earlier]
                for copy in group if others else ():
                    if copy.split == split:
                        pairs.append((copy, others[0]))
                        num_of_other_label += copy.label not in {other.label for other in others}
            if pairs:
                shown = [copy for pair in pairs[:NUM_SHOWN] for copy in pair]
                names = [f"{copy.split}/{printable(name)}" for copy, name in _names(shown, catalog)]
                same = "; ".join(f"{first} = {second}" for first, second in zip(names[::2], names[1::2], strict=True))
                yield (
                    f"warning: {len(pairs):,} images of {split} are in {earlier} too, byte for byte"
                    f"{f' ({num_of_other_label:,} with another label)' if num_of_other_label else ''}{where}; such as "
                    f"{same}"
                )


def _notes_within(groups: list[list[Copy]], splits: list[str], where: str) -> Iterator[str]:
    for split in splits:
        num_copies, num_conflicts = 0, 0
        for group in groups:
            labels = Counter(copy.label for copy in group if copy.split == split)
            num_copies += sum(number - 1 for number in labels.values())
            num_conflicts += labels.total() if len(labels) > 1 else 0
        if num_copies:
            yield f"{split}: {num_copies:,} images are copies of others of the same class"
        if num_conflicts:
            yield (
                f"warning: {split}: {num_conflicts:,} images are equal to one of another class, so their labels "
                f"contradict each other{where}"
            )


def _write_list(path: Path, groups: list[list[Copy]], catalog: Catalog) -> None:
    path.unlink(missing_ok=True)  # of an interrupted command, whose images may have been others
    if not groups:
        return
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(DUPLICATES_COLUMNS)
    numbers = [number for number, group in enumerate(groups, 1) for _ in group]
    copies = [copy for group in groups for copy in group]
    for number, (copy, name) in zip(numbers, _names(copies, catalog), strict=True):
        writer.writerow([number, copy.split, copy.label, printable(name, keep_bytes=True)])
    write_atomically(path, text.getvalue())


def _names(copies: list[Copy], catalog: Catalog) -> Iterator[tuple[Copy, str]]:
    """The copies with their names in the source."""
    for copy in copies:
        yield copy, next(catalog.images(copy.split, range(copy.position, copy.position + 1))).name
