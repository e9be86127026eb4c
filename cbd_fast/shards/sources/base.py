"""What every source has in common: its images, not yet read, and how its files and folders are read."""

import argparse
import os
import posixpath
import stat
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Protocol

from cbd_fast.errors import InputError
from cbd_fast.shards.sources.not_images import PassedOver, is_system_folder

SPLITS = ("train", "val", "test")
MAX_LABEL = 2**24  # a larger one is something else, and the classes up to it would not fit into memory
MAX_GAPS = 10**6  # numbers without images; a list of as many classes would take memory for nothing
MAX_FILE_BYTES = 2**30  # no image is larger
MAX_LINE_LENGTH = 2**16  # of a list, in characters
MAX_SHOWN = 100  # characters of a line in a message
_MARKS = {  # the longer ones first: that of UTF-32 begins as that of UTF-16 does
    b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}  # fmt: skip
_NO_CHARACTERS = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
_JOINERS = "\u200c\u200d"  # they belong to the spelling of words in some scripts


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceImage:
    """An image of a source, not yet read.

    Attributes:
        split: ``train``, ``val`` or ``test``.
        name: path below the split's root, ``/`` between its parts; unique in the split.
        label: number of the class, or its name where the source does not know the classes beforehand.
        num_bytes: size of the image's file; None if there is no such file.
        path: the file that holds the image, or None if ``data`` does.
        offset: of the image's first byte, where the file holds more than this image.
        data: bytes of the image, where no file holds them.
        metadata: what else the source knows, as a JSON object for the shard.
        mtime_ns: when the file was last changed, in nanoseconds.
        label_source: what holds the label, for messages, where the label is a text.
        problem: why the image cannot be used, where that is known already; its label is then -1.
    """

    split: str
    name: str
    label: int | str
    num_bytes: int | None
    path: str | None = None
    offset: int | None = None
    data: bytes | None = None
    metadata: str | None = None
    mtime_ns: int = 0
    label_source: str | None = None
    problem: str | None = None

    def read(self) -> bytes:
        """The image's file.

        Raises:
            OSError: it cannot be read.
            ValueError: the image cannot be used; the message is its ``problem``.
        """
        if self.problem is not None:
            raise ValueError(self.problem)
        if self.data is not None:
            return self.data
        assert self.path is not None
        descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)  # opening a pipe would wait for a writer
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OSError("not a regular file")
            size = status.st_size if self.offset is None else self.num_bytes or 0
            if size > MAX_FILE_BYTES:
                raise OSError(f"{size:,} bytes, which is no image")
            data = os.pread(descriptor, size, self.offset or 0)
        finally:
            os.close(descriptor)
        if len(data) != size:
            raise OSError("the file that holds it ends too early")
        return data


@dataclass(frozen=True, kw_only=True)
class Source:
    """A dataset on disk.

    Attributes:
        kind: name of the layout.
        classes: names of the classes in the order of their numbers; None if the labels of the images tell.
        images: gives the images, one after the other.
        roots: folders that must stay there while the images are read.
        searched: folders of which every file is taken, so that nothing else may be written there.
        options: what else decided which images there are.
        notes: what people should know of the splits; they go into the manifest.
    """

    kind: str
    classes: list[str] | None
    images: Callable[[], Iterator[SourceImage]]
    roots: list[Path] = field(default_factory=list)
    searched: list[Path] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class SourceLayout(Protocol):
    """A layout that datasets come in: an entry of ``SOURCES``, and under its name a subcommand of ``cbd-fast shards``.

    The first line of an entry's docstring is the subcommand's help.

    Attributes:
        is_fixed: whether its images are one fixed set, so that there is nothing to choose among them (a long tail, a
            preset). An entry without this attribute has no fixed set.
    """

    is_fixed: ClassVar[bool] = False

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Adds the options that say where a dataset of this layout is; others, such as ``--seed``, are there."""

    @staticmethod
    def open(arguments: argparse.Namespace) -> Source:
        """The dataset that the options name.

        Raises:
            InputError: it is not there, or not of this layout.
        """
        ...


def given_splits(arguments: argparse.Namespace) -> dict[str, Any]:
    """Values of those of the options ``--train``, ``--val`` and ``--test`` that were given, by split."""
    return {split: value for split in SPLITS if (value := getattr(arguments, split))}


def file_image(split: str, root: Path, name: str, label: int) -> SourceImage:
    """An image that has a file of its own, ``name`` below ``root``, in whichever Unicode spelling it is there."""
    path = os.path.join(os.path.abspath(root), name)
    if not name.isascii() and not os.path.lexists(path):
        spellings = (os.path.join(os.path.abspath(root), unicodedata.normalize(form, name)) for form in ("NFC", "NFD"))
        path = next(filter(os.path.lexists, spellings), path)
    try:
        status = os.stat(path)
        num_bytes: int | None = status.st_size
        mtime_ns = status.st_mtime_ns
    except (OSError, ValueError):  # missing, a dangling link, or no possible name of a file
        num_bytes, mtime_ns = None, 0
    return SourceImage(split=split, name=name, label=label, num_bytes=num_bytes, path=path, mtime_ns=mtime_ns)


def check_folder(folder: Path) -> None:
    """Raises ``InputError`` if there is no such folder."""
    if not folder.is_dir():
        raise InputError(f"{folder}: {'not a folder' if folder.exists() else 'no such folder'}")


def files_below(class_folder: Path, passed: PassedOver | None = None) -> Iterator[str]:
    """Path of every visible file below the folder of a class, from there.

    Args:
        class_folder: the folder; those that systems make inside it, with thumbnails and the like, are not looked at.
        passed: counts the files that are no images by their kind, which are then left out.

    Raises:
        InputError: a folder cannot be listed.
    """
    # a link back to where we are, or to other classes, is not followed
    root = class_folder.parent.resolve()
    seen = {(status.st_dev, status.st_ino) for status in map(os.stat, [root, *root.parents])}
    for folder, subfolders, files in os.walk(class_folder, onerror=refuse_unlisted, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(name for name in subfolders if not is_system_folder(name))
        prefix = "" if folder == os.fspath(class_folder) else os.path.relpath(folder, class_folder) + "/"
        for file in files:
            if not file.startswith(".") and not (passed and passed.takes(f"{class_folder.name}/{prefix}{file}")):
                yield prefix + file


def refuse_unlisted(error: OSError) -> NoReturn:
    """Raises ``InputError``: a folder whose files nobody knows is no folder without files."""
    raise InputError(f"{error.filename}: cannot be listed ({error.strerror}); allow reading it, or move it") from error


def read_lines(path: Path) -> Iterator[str]:
    """Lines of a text file, without their ends; bytes that are not UTF-8 are kept as surrogates.

    A mark at the file's beginning tells whether it is UTF-16 or UTF-32.

    Raises:
        InputError: the file cannot be read, or is no text.
    """
    try:
        with open(path, "rb") as binary:
            encoding = encoding_of(binary.read(4))
        errors = "strict" if encoding in ("utf-16", "utf-32") else "surrogateescape"
        with open(path, encoding=encoding, errors=errors, newline="\n") as file:
            while line := file.readline(MAX_LINE_LENGTH):
                if len(line) == MAX_LINE_LENGTH:
                    raise InputError(f"{path}: has a line of more than {MAX_LINE_LENGTH:,} characters; is it a list?")
                yield line.rstrip("\r\n")
    except UnicodeError as error:
        raise InputError(f"{path}: not whole {encoding.upper()} ({error}); save it as UTF-8") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error


def encoding_of(start: bytes) -> str:
    """The encoding of a text, by the mark that it may begin with; UTF-8 without one."""
    return next((encoding for mark, encoding in _MARKS.items() if start.startswith(mark)), "utf-8")


def has_control_characters(text: str) -> bool:
    """Whether a text holds what is no character of any writing: control characters, surrogates, turned directions."""
    return not text.isprintable() and any(
        unicodedata.category(letter) in _NO_CHARACTERS and letter not in _JOINERS for letter in text
    )


def same_spelling(name: str) -> str:
    """A name in the one of its Unicode spellings (NFC) in which equal names are equal."""
    return unicodedata.normalize("NFC", name)


def read_classes(path: Path) -> list[str]:
    """Names of classes, one per line, in the order of their numbers.

    Raises:
        InputError: the file cannot be read, or has empty lines, a name twice, or one that cannot be shown.
    """
    classes = list(read_lines(path))
    while classes and not classes[-1]:
        classes.pop()
    line_of: dict[str, int] = {}
    for number, name in enumerate(classes, 1):
        if not name.strip() or has_control_characters(name):
            raise InputError(f"{path}: line {number}: {name[:MAX_SHOWN]!r} is no name; it must hold one name per line")
        if (other := line_of.setdefault(same_spelling(name), number)) != number:
            raise InputError(
                f"{path}: must hold one name per line, each once; {name[:MAX_SHOWN]!r} is in lines {other} and {number}"
            )
    return classes


def plain_name(name: str, root: Path) -> str:
    """The one name below ``root`` of a file that may be listed as ``./a//b.jpg`` or with its whole path."""
    plain = posixpath.normpath(name)
    above = os.path.abspath(root).rstrip("/") + "/"
    return plain.removeprefix(above)
