"""WebDataset shards that somebody else wrote, as a source."""

import argparse
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cbd_fast.errors import InputError, printable
from cbd_fast.files import user_path
from cbd_fast.registry import SOURCES
from cbd_fast.shards.manifest import LABEL_KEY
from cbd_fast.shards.sources.base import SPLITS, Source, SourceImage, SourceLayout, given_splits, read_classes
from cbd_fast.shards.sources.label_texts import ClassNumbers, check_label, is_number
from cbd_fast.shards.sources.own_shards import NamesOfNumbers, OwnShards, are_numbers, read_own_shards
from cbd_fast.shards.sources.sample_parts import (
    LABEL_EXTENSIONS,
    check_image,
    first_image,
    folder_before,
    json_label,
    label_extension_of,
    missing_label,
)
from cbd_fast.shards.sources.tar_samples import (
    PassedOver,
    Sample,
    member_json,
    member_text,
    read_samples,
)
from cbd_fast.shards.sources.tar_splits import describe_paths, find_tars, split_tars

MAX_PROBLEM_LENGTH = 1000  # a forged tar may have names of megabytes
MAX_NOTES = 10  # on what is passed over, before they are summed up


@SOURCES.register("webdataset")
class WebDataset(SourceLayout):
    """Tars that somebody else wrote (cbd-fast index uses them as they are)."""

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Adds the folder, and options that say where images, labels and splits are."""
        parser.add_argument("folder", type=user_path, metavar="DIR", help="holds the tars, at any depth")
        for split in SPLITS:
            parser.add_argument(
                f"--{split}",
                metavar="PATTERN",
                help="tars of this split, such as 'train-*.tar' (default: by the word in their path)",
            )
        parser.add_argument(
            "--image", metavar="EXT", help="extension of the image, such as 'image.jpg', where a sample has several"
        )
        parser.add_argument(
            "--label-key", metavar="KEY", help="of the label in .json (default: the label is .cls or .txt)"
        )
        parser.add_argument("--classes", type=user_path, metavar="FILE", help="names of the classes, one per line")

    @staticmethod
    def open(arguments: argparse.Namespace) -> Source:
        """The tars that the command line names."""
        layout = TarLayout(
            globs=given_splits(arguments),
            image=arguments.image,
            label_key=arguments.label_key,
            classes_file=arguments.classes,
        )
        return webdataset_source(arguments.folder, layout)


@dataclass(frozen=True, kw_only=True)
class TarLayout:
    """Where images, labels and splits are in foreign shards.

    Attributes:
        globs: pattern of each split's tars, below the folder; by default the words train, val and test in their
            paths tell, and if none has such a word every tar is for training.
        image: extension of the image, where a sample has several; by default the one without a further dot.
        label_key: key of the label in ``.json``, with dots into nested objects; by default ``.cls`` or ``.txt``.
        classes_file: names of the classes, one per line.
    """

    globs: dict[str, str] = field(default_factory=dict)
    image: str | None = None
    label_key: str | None = None
    classes_file: Path | None = None


def webdataset_source(folder: Path, layout: TarLayout) -> Source:
    """Plain tars in the WebDataset convention: the members of an image share their name up to its first dot.

    A sample whose label or image cannot be used is an image that cannot be used, with the reason. Shards that we wrote
    keep their splits and the names of their classes.

    Args:
        folder: the folder that holds the tars, at any depth.
        layout: where images, labels and splits are.

    Raises:
        InputError: there are no tars, they are compressed or damaged, it is not clear which are for training, or the
            same number means different classes in shards that we wrote.
    """
    notes: list[str] = []
    tars = find_tars(folder, bool(layout.globs), notes)
    own = read_own_shards(folder, tars, is_compared=not layout.label_key and layout.classes_file is None)
    splits = split_tars(folder, tars, layout.globs, own.split_of, notes)
    numbers = _class_numbers(layout, own.classes)

    def images() -> Iterator[SourceImage]:
        reader = _TarReader(folder, layout, own, splits["train"], notes)
        for split, paths in splits.items():
            for path in paths:
                for image in reader.images(path, split):
                    yield image if numbers is None else numbers.numbered(image, own.classes_of.get(path))
        reader.sum_up()

    classes = None if numbers is None else numbers.classes
    return Source(
        kind="webdataset",
        classes=classes,
        images=images,
        options={LABEL_KEY: layout.label_key},
        roots=[folder],
        searched=[folder],
        notes=notes,
    )


def _class_numbers(layout: TarLayout, own_classes: list[str] | None) -> ClassNumbers | None:
    """How labels become numbers of classes that are known beforehand; None if the labels must tell."""
    if layout.classes_file is not None:
        return ClassNumbers(read_classes(layout.classes_file), str(layout.classes_file))
    if own_classes is not None and not layout.label_key:
        return ClassNumbers(own_classes, "dataset.json", are_positions=are_numbers(own_classes))
    return None


class _TarReader:
    """Images of tars, one tar after the other, with what is passed over in them."""

    def __init__(self, folder: Path, layout: TarLayout, own: OwnShards, paths: list[str], notes: list[str]) -> None:
        self._folder, self._layout, self._own, self._notes = folder, layout, own, notes
        self._names = NamesOfNumbers(folder, own)
        self._num_notes, self._num_unnoted = 0, 0
        self._numbered: dict[str, set[str]] = {}  # folders whose labels are numbers, by split
        self._label_extension = LABEL_EXTENSIONS[0]
        if layout.label_key is None:
            self._label_extension = label_extension_of(os.path.join(os.path.abspath(folder), path) for path in paths)

    def images(self, path: str, split: str) -> Iterator[SourceImage]:
        """Images of a tar."""
        file = os.path.join(os.path.abspath(self._folder), path)
        without, outside = PassedOver(), PassedOver()
        pairs: set[tuple[str, str]] = set()
        try:
            with open(file, "rb") as opened:
                descriptor = opened.fileno()
                mtime_ns = os.fstat(descriptor).st_mtime_ns
                for sample in read_samples(file, self._is_whole, outside):
                    image = first_image(sample, self._layout.image)
                    if image is None:
                        without.first = without.first or next(iter(sample.members.values())).name
                        without.number += 1
                        continue
                    known = SourceImage(
                        split=split,
                        name=f"{path}/{image.name}",
                        label=-1,
                        num_bytes=0,
                        path=file,
                        offset=image.offset_data,
                        mtime_ns=mtime_ns,
                    )
                    try:
                        check_image(sample, image, self._layout.image)
                        metadata = member_json(descriptor, sample.members["json"]) if "json" in sample.members else {}
                        label, source = self._label(descriptor, image, sample, metadata)
                        text = json.dumps(metadata) if metadata else None
                    except ValueError as error:
                        yield replace(known, problem=printable(error)[:MAX_PROBLEM_LENGTH])
                        continue
                    pairs.add((label, folder_before(image.name, metadata)))
                    yield replace(known, label=label, label_source=source, num_bytes=image.size, metadata=text)
        except OSError as error:
            raise InputError(f"{file}: cannot be read ({error.strerror})") from error
        if self._layout.label_key is None and self._layout.classes_file is None:
            self._names.add(path, pairs)
            if any(is_number(label) for label, _ in pairs):
                self._numbered.setdefault(split, set()).add(os.path.dirname(path) or ".")
        self._note(path, outside, "members that belong to no sample")
        self._note(path, without, "samples without an image")

    def sum_up(self) -> None:
        """Says how many samples and members were passed over, where that was not yet said, and what is assumed."""
        folders: list[str] = max(map(sorted, self._numbered.values()), key=len, default=[])
        if len(folders) > 1 and not self._own.classes_of:
            self._notes.append(
                f"labels are numbers in {len(folders):,} folders ({describe_paths(folders)}): the same number is taken "
                "for the same class"
            )
        if self._num_unnoted:
            self._notes.append(f"in other tars, {self._num_unnoted:,} samples and members are passed over likewise")
        self._num_notes, self._num_unnoted = 0, 0

    def _note(self, path: str, passed: PassedOver, what: str) -> None:
        if passed.number and self._num_notes < MAX_NOTES:
            self._num_notes += 1
            self._notes.append(f"{path}: {passed.number} {what} are passed over, such as {printable(passed.first)}")
        elif passed.number:
            self._num_unnoted += passed.number

    def _is_whole(self, sample: Sample) -> bool:
        label = "json" if self._layout.label_key else self._label_extension
        return label in sample.members and first_image(sample, self._layout.image) is not None

    def _label(
        self, descriptor: int, image: tarfile.TarInfo, sample: Sample, metadata: dict[str, Any]
    ) -> tuple[str, str]:
        """The label's text, and what holds it; ``ValueError`` if the sample has none."""
        if (key := self._layout.label_key) is not None:
            return check_label(
                json_label(metadata, key, image.name), f"{image.name}: {key!r} of .json"
            ), f"{key!r} of .json"
        extension = self._label_extension
        others = [each for each in LABEL_EXTENSIONS if each in sample.members and each != extension]
        if extension in sample.members and not (extension == "txt" and others):
            member = sample.members[extension]
            return check_label(member_text(descriptor, member), member.name), f".{extension}"
        raise ValueError(f"{printable(image.name)} {missing_label(sample, extension, others, metadata)}")
