"""One shard, checked against its manifest and its index."""

import os
import tarfile
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cbd_fast.errors import first_line, printable
from cbd_fast.files import file_sha256
from cbd_fast.shards.image_header import image_size
from cbd_fast.shards.index import MAX_PIXELS, ClassIndex
from cbd_fast.shards.manifest import IN_PLACE, LABEL_KEY, MANIFEST_NAME, Manifest, ShardRecord, SplitRecord, file_size
from cbd_fast.shards.sources.base import same_spelling
from cbd_fast.shards.tar_members import read_member, regular_members

LABEL_SUFFIX = ".cls"
MAX_LABEL_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class BadImage:
    """An image that training cannot use.

    Attributes:
        index: position of the image in the split's index.
        name: where the image is, for messages.
        reason: why it cannot be used.
    """

    index: int
    name: str
    reason: str


@dataclass(kw_only=True)
class SplitFindings:
    """What a verification of a split says.

    Attributes:
        record: the split's part of the manifest.
        index: the split's images.
        problems: what is wrong with shards, beside their images.
        lasting_problems: what no quarantine repairs.
        bad: images that cannot be used; those that are quarantined already are not among them.
        good: width and height in pixels of quarantined images that can be used again, by index.
        changed: numbers of the shards that differ from the manifest.
        shards: those of them of which quarantined images are all that differs, as they are, by number.
        is_stopped: set when what was asked for is wanted no more.
    """

    record: SplitRecord
    index: ClassIndex
    problems: list[str] = field(default_factory=list)
    lasting_problems: list[str] = field(default_factory=list)
    bad: list[BadImage] = field(default_factory=list)
    good: dict[int, tuple[int, int]] = field(default_factory=dict)
    changed: set[int] = field(default_factory=set)
    shards: dict[int, ShardRecord] = field(default_factory=dict)
    is_stopped: threading.Event = field(default_factory=threading.Event)

    @property
    def num_lasting(self) -> int:
        """Number of problems that no quarantine repairs."""
        return len(self.lasting_problems) + len(self.changed - self.shards.keys())


class LabelCheck:
    """What labels beside the images of tars must be, given those in the index.

    Attributes:
        is_compared: whether the labels are in members that can be compared.
    """

    def __init__(self, manifest: Manifest) -> None:
        """Remembers whether we wrote the tars, and the names of the classes."""
        self._is_foreign = manifest.recipe.source == IN_PLACE
        # else the labels are in .json, and a .cls is something else
        self.is_compared = manifest.recipe.options.get(LABEL_KEY) is None
        self._names = [same_spelling(name) for name in manifest.classes]
        self._are_numbers = all(name == str(number) for number, name in enumerate(manifest.classes))

    def is_right(self, text: str | None, label: int, renumbered: dict[str, int] | None) -> bool:
        """Whether a label beside an image is that of the index.

        Args:
            text: the label; None if there is none, as where somebody else has it in a ``.txt``.
            label: number of the class in the index.
            renumbered: None, or where the numbers in the tar are those of a dataset of its own, whose names decided:
                what each of them meant before.
        """
        if not self._is_foreign:
            return text == str(label)
        if text is None:
            return True
        if text.isdecimal() and renumbered is not None:
            return renumbered.setdefault(text, label) == label
        return text == str(label) or (not self._are_numbers and same_spelling(text) == self._names[label])


def check_shard(
    folder: Path, number: int, indices: np.ndarray, findings: SplitFindings, *, is_full: bool, labels: LabelCheck
) -> None:
    """Checks one shard, and adds what is wrong to the findings of its split.

    Args:
        folder: the folder of the shards.
        number: number of the shard.
        indices: ``(n,)`` int64, the shard's images, in the order of their offsets.
        findings: findings of the split; from any thread.
        is_full: whether to hash the shard, and read and decode every image.
        labels: what labels in the tar must be.
    """
    record = findings.record.shards[number]
    path = record.path(folder)
    shown = printable(path)
    try:
        size = file_size(path)
        sha256 = file_sha256(path) if is_full else record.sha256
    except OSError as error:
        findings.lasting_problems.append(f"{shown}: {error.strerror}; bring it back or make the shards again")
        return
    if record.num_images != len(indices):
        findings.lasting_problems.append(
            f"{shown}: {record.num_images} images in dataset.json, but {len(indices)} in the index"
        )
    is_bad = findings.index.entries["width"][indices] == 0  # quarantined before
    if is_full:
        is_bad[:] = [not _check_image(path, int(index), findings) for index in indices]
    is_renumbered = any((folder / parent / MANIFEST_NAME).exists() for parent in list(Path(record.file).parents)[:-1])
    compared = _compare_members(path, indices[~is_bad], findings.index, labels, is_renumbered=is_renumbered)
    problems = list(compared)
    findings.lasting_problems += problems
    if (size, sha256) == (record.num_bytes, record.sha256):
        return
    is_now, was = f"{size:,} bytes", f"{record.num_bytes:,}"
    if size == record.num_bytes:
        is_now, was = f"sha256 {sha256}", record.sha256
    findings.changed.add(number)
    findings.problems.append(f"{shown}: {is_now}, but dataset.json has {was}")
    has_changed = is_bad.any() or not findings.good.keys().isdisjoint(indices.tolist())
    if has_changed and not problems:  # bad images, or those that were repaired, are all that differs
        findings.shards[number] = record.model_copy(update={"num_bytes": size, "sha256": sha256})


def _check_image(path: Path, index: int, findings: SplitFindings) -> bool:
    """Whether an image can be used."""
    if findings.is_stopped.is_set():
        return True
    entry = findings.index.entries[index]
    was_quarantined = int(entry["width"]) == 0
    try:
        expected = None if was_quarantined else (int(entry["height"]), int(entry["width"]))
        width, height = _decoded_size(path, int(entry["offset"]), int(entry["size"]), int(entry["crc32"]), expected)
        if not was_quarantined and (width, height) != (int(entry["width"]), int(entry["height"])):
            raise ValueError(f"{width} x {height} pixels, but the index has {entry['width']} x {entry['height']}")
    except (OSError, ValueError, RuntimeError) as error:
        if not was_quarantined:
            name = f"{printable(path.name)}: byte {int(entry['offset']):,}"
            findings.bad.append(BadImage(index=index, name=name, reason=printable(first_line(error))))
        return False
    if was_quarantined:
        findings.good[index] = (width, height)
    return True


def _decoded_size(path: Path, offset: int, size: int, crc32: int, expected: tuple[int, int] | None) -> tuple[int, int]:
    """Width and height; ``expected``, its height and width, are compared before memory is taken."""
    # takes seconds to import, and only a full verification needs it
    from cbd_fast.shards.reference_decoder import decode_rgb

    with open(path, "rb", buffering=0) as file:
        if offset + size > os.fstat(file.fileno()).st_size:  # before memory is taken for it
            raise OSError("the tar ends before it")
        data = np.empty(size, np.uint8)
        if os.preadv(file.fileno(), [data.data], offset) != size:
            raise OSError("the tar ends before it")
    if zlib.crc32(data.data) != crc32:
        raise OSError("the bytes are not those that were indexed (crc32)")
    if expected is None:
        expected = image_size(data.data)
        if expected[0] * expected[1] > MAX_PIXELS:
            raise ValueError(f"{expected[1]} x {expected[0]} pixels, more than the {MAX_PIXELS} of an image in shards")
    height, width = decode_rgb(data, expected).shape[1:]
    return width, height


def _compare_members(
    path: Path, indices: np.ndarray, index: ClassIndex, check: LabelCheck, *, is_renumbered: bool
) -> Iterator[str]:
    """Problems of a tar whose members are not where the index has them, or have another label.

    Args:
        path: the tar.
        indices: ``(n,)`` int64, its images, in the order of their offsets.
        index: index of the split.
        check: what labels must be.
        is_renumbered: whether the tar is of a dataset of its own, in a folder below.
    """
    entries, shown = index.entries[indices], printable(path)
    renumbered: dict[str, int] | None = {} if is_renumbered else None
    members: dict[int, tuple[str, int]] = {}  # name and size, by offset
    labels: dict[str, str] = {}
    try:
        with open(path, "rb") as file:
            for member in regular_members(path):
                members[member.offset_data] = (member.name, member.size)
                if check.is_compared and member.name.endswith(LABEL_SUFFIX):
                    content = read_member(file.fileno(), member, MAX_LABEL_BYTES)
                    labels[_key(member.name)] = "that is too long" if content is None else _as_label(content)
    except (OSError, tarfile.TarError) as error:  # a cut off tar has its members up to there
        if not members.keys() >= set(entries["offset"].tolist()):
            yield f"{shown}: its members cannot all be read ({printable(first_line(error))})"
    stops = entries["offset"] + entries["size"]
    for at in np.flatnonzero(stops[:-1] > entries["offset"][1:]):
        yield f"{shown}: rows {indices[at]:,} and {indices[at + 1]:,} of the index share bytes"
    for entry in entries:
        offset, size, label = (int(entry[column]) for column in ("offset", "size", "label"))
        name, size_there = members.get(offset, ("", -1))
        if size_there != size:
            yield f"{shown}: no image of {size:,} bytes at byte {offset:,}, where the index has one"
        elif check.is_compared and not check.is_right(there := labels.get(_key(name)), label, renumbered):
            label_there = there if there is None or there.isdecimal() else printable(repr(there))
            yield f"{shown}: {printable(name)} has label {label_there}, but {label} in the index"


def _as_label(content: bytes) -> str:
    """The number in a ``.cls`` member as text, or what is there in its place."""
    text = content.decode("utf-8", "backslashreplace").strip()
    return str(int(text)) if text.isascii() and text.isdecimal() else text


def _key(name: str) -> str:
    return name.partition(".")[0]
