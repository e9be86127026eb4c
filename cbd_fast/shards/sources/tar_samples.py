"""Samples of a tar in the WebDataset convention, from whoever wrote it: members that share their name up to a dot.

A tar may be forged. Nothing of it is read before its size was looked at, and whatever is wrong with it as a whole is an
``InputError``; what is wrong with one member is for the caller to judge.
"""

import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any

from cbd_fast.errors import InputError, first_line, printable
from cbd_fast.shards.sources.base import encoding_of

MAX_HEADER_BYTES = 1 << 20  # of an extended header; they hold names and times
MAX_LABEL_BYTES = 1 << 16
MAX_JSON_BYTES = 4 << 20
MAX_JSON_DEPTH = 100


@dataclass(kw_only=True, slots=True)
class Sample:
    """The members of a tar that belong together.

    Attributes:
        members: what is known of each member, by its extension in small letters: what follows the name's first dot.
        twice: name of a member that is there twice, or None.
    """

    members: dict[str, tarfile.TarInfo] = field(default_factory=dict)
    twice: str | None = None


@dataclass(kw_only=True, slots=True)
class PassedOver:
    """Members that belong to no sample: how many, and the name of the first."""

    number: int = 0
    first: str = ""


def read_samples(file: str, is_whole: Callable[[Sample], bool], passed: PassedOver) -> Iterator[Sample]:
    """Samples of a tar, those whose members are not next to each other last.

    Args:
        file: path of the tar.
        is_whole: whether a sample has all that is needed, so that it need not be held back for other members.
        passed: counts members that belong to no sample.

    Raises:
        InputError: it is not a whole tar.
    """
    key, sample = "", Sample()
    pending: dict[str, Sample] = {}
    for member in _members(file):
        folder, name = os.path.split(member.name)
        stem, _, extension = name.partition(".")
        if member.isdir() or (not folder and name.startswith("__") and name.endswith("__")):  # about the tar
            continue
        is_file = member.isreg() or member.islnk() or member.issym()
        if not is_file or not stem or not extension:  # stock readers pass over these, too
            passed.first = passed.first or member.name
            passed.number += 1
            continue
        if (member_key := os.path.join(folder, stem)) != key:
            if sample.members and is_whole(sample):
                yield sample
            elif sample.members:
                pending[key] = sample
            key, sample = member_key, pending.pop(member_key, Sample())
        if extension.lower() in sample.members:
            sample.twice = member.name
        sample.members.setdefault(extension.lower(), member)
    if sample.members:
        yield sample
    yield from pending.values()


def _members(file: str) -> Iterator[tarfile.TarInfo]:
    try:
        opened = _HeaderFile(io.FileIO(file))
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from error
    with closing(opened):
        tar, last = None, -1
        while True:
            try:
                tar = tar or tarfile.TarFile(file, fileobj=opened)
                member = tar.next()
            except Exception as error:  # on forged headers tarfile raises all sorts, RecursionError among them
                raise InputError(f"{file}: not a whole tar ({printable(first_line(error))})") from error
            if member is None:
                break
            tar.members.clear()  # type: ignore[attr-defined]  # it keeps all of them
            if member.offset <= last or member.size < 0:
                raise InputError(f"{file}: not a whole tar (what follows byte {last:,} is before it)")
            last = member.offset
            yield member
        _check_end(file, opened, tar.offset)


class _HeaderFile(io.BufferedReader):
    """A file of which only headers are read: a forged length takes no memory."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


def _check_end(file: str, opened: io.BufferedReader, offset: int) -> None:
    """A damaged header ends a tar for every reader; what is behind it would be lost without a word."""
    with suppress(OSError):  # where a file system knows of holes, they need not be read
        offset = os.lseek(opened.fileno(), offset, os.SEEK_DATA)
    opened.seek(offset)
    while piece := opened.read(MAX_HEADER_BYTES):
        if piece.strip(b"\0"):
            raise InputError(
                f"{file}: goes on after its end at byte {offset:,}; it is damaged there, or several tars in one"
            )


def check_stored_plainly(member: tarfile.TarInfo) -> None:
    """Raises ``ValueError`` if the bytes of a member are not in the tar in one piece."""
    if not member.isreg():
        option = "tar --hard-dereference" if member.islnk() else "tar --dereference"
        raise ValueError(
            f"{printable(member.name)} is a link to {printable(member.linkname)!r}: store the file itself ({option})"
        )
    if member.issparse():
        raise ValueError(f"{printable(member.name)} is stored with holes (sparse): store it whole")


def member_text(descriptor: int, member: tarfile.TarInfo) -> str:
    """The text of a small member, without spaces around it.

    Raises:
        ValueError: it is no text, too large, or not in the tar in one piece; the message is the reason.
    """
    data = _content(descriptor, member, MAX_LABEL_BYTES)
    try:
        return data.decode(encoding_of(data)).strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{printable(member.name)} is no UTF-8 text ({data[:20]!r})") from error


def member_json(descriptor: int, member: tarfile.TarInfo) -> dict[str, Any]:
    """The object in a member that is JSON; empty if it is something else than an object.

    Raises:
        ValueError: it is no JSON, too large or too deep, or not in the tar in one piece; the message is the reason.
    """
    data = _content(descriptor, member, MAX_JSON_BYTES)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        what = printable(first_line(error))
        raise ValueError(f"{printable(member.name)} is not JSON in UTF-8 ({what})") from error
    if data.count(b"[") + data.count(b"{") > MAX_JSON_DEPTH and _depth(value) > MAX_JSON_DEPTH:
        raise ValueError(f"{printable(member.name)} is nested deeper than {MAX_JSON_DEPTH} times")
    return value if isinstance(value, dict) else {}


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level := [each for each in level if isinstance(each, dict | list)]:
        depth += 1
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
    return depth


def _content(descriptor: int, member: tarfile.TarInfo, max_bytes: int) -> bytes:
    check_stored_plainly(member)
    if member.size > max_bytes:
        raise ValueError(f"{printable(member.name)} has {member.size:,} bytes, more than the {max_bytes:,} of its kind")
    return os.pread(descriptor, member.size, member.offset_data)
