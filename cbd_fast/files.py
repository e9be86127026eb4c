"""Whole files or none: everything is written under a temporary name and renamed when it is complete."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cbd_fast.errors import InputError

PARTIAL_SUFFIX = ".cbd_fast-partial"  # nobody else's file or folder has such a name


def write_whole(path: Path, data: bytes | str) -> None:
    """Writes ``data`` to ``path``; after a crash the file holds the old content or the new, never a part."""
    temporary = path.with_name(path.name + PARTIAL_SUFFIX)
    temporary.write_bytes(data.encode() if isinstance(data, str) else data)
    _to_disk(temporary)
    os.replace(temporary, path)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder beside ``path`` that becomes ``path`` when the block ends without an error.

    ``path`` itself may exist only as an empty folder. After an error nothing is left; after a kill the folder stays
    under its temporary name, which nothing opens, and the next attempt replaces it.
    """
    try:
        path = path.resolve()
        temporary = path.with_name(path.name + PARTIAL_SUFFIX)
        missing_parents = [parent for parent in path.parents if not parent.exists()]
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: no folder can be made there ({error})") from error
    try:
        yield temporary
        for file in temporary.rglob("*"):
            _to_disk(file)
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in missing_parents:
            with suppress(OSError):  # somebody else may have put something there by now
                parent.rmdir()
        raise
    _to_disk(path.parent)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
