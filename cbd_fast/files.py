"""Whole files or none: everything is written under a temporary name and renamed when it is complete."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL_SUFFIX = ".partial"


def write_whole(path: Path, data: bytes | str) -> None:
    """Writes ``data`` to ``path``; after a crash the file holds the old content or the new, never a part."""
    temporary = path.with_name(path.name + PARTIAL_SUFFIX)
    with open(temporary, "wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder beside ``path`` that becomes ``path`` when the block ends without an error.

    ``path`` itself may exist only as an empty folder. After an error the temporary folder is removed; after a kill
    it stays under its temporary name, which nothing opens, and the next attempt replaces it.
    """
    temporary = path.with_name(path.name + PARTIAL_SUFFIX)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    os.replace(temporary, path)
