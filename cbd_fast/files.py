"""Whole files or none: everything is written under a temporary name and renamed when it is complete."""

import errno
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cbd_fast.errors import InputError

PARTIAL_SUFFIX = ".cbd_fast-partial"  # nobody else's file or folder has such a name
LOCK_SECONDS = 10.0  # how long a command waits for a folder that another has


def write_atomically(path: Path, data: bytes | str) -> None:
    """Writes ``data`` to ``path``; after a crash the file holds the old content or the new, never a part."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a path beside ``path`` to write to; the file becomes ``path`` when the block ends without an error.

    It is on the disk before it gets its name, and so is the name when the block has ended. After an error nothing is
    left; after a kill the file stays under its temporary name, which nothing opens.
    """
    temporary = path.with_name(path.name + PARTIAL_SUFFIX)
    try:
        yield temporary
        publish(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def publish(temporary: Path, path: Path) -> None:
    """Gives a finished file or folder its name; returns when both it and the name have reached the disk."""
    fsync_path(temporary)
    os.replace(temporary, path)
    fsync_path(path.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
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
            fsync_path(file)
        publish(temporary, path)
    except BaseException:
        _remove(temporary, missing_parents)
        raise
    for parent in missing_parents:
        fsync_path(parent.parent)


@contextmanager
def resumable_folder(path: Path) -> Iterator[Path]:
    """Yields the folder beside ``path`` that becomes ``path`` when the block ends without an error.

    Like ``atomic_folder``, but what an interrupted attempt left is still in it, and after an error it stays for the
    next attempt, except after ``InputError`` at the first. Nobody else can have the folder at the same time.
    """
    path = path.resolve()
    missing_parents = [parent for parent in path.parents if not parent.exists()]
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    is_first = not partial.exists()
    with locked_folder(partial) as temporary:
        try:
            yield temporary
        except InputError:
            if not is_first:
                raise
            _remove(temporary, missing_parents)
            raise
        if temporary.exists():
            publish(temporary, path)
            for parent in missing_parents:
                fsync_path(parent.parent)


def _remove(folder: Path, parents: Iterable[Path]) -> None:
    """Removes a folder, and those above it that were made for it, innermost first."""
    shutil.rmtree(folder, ignore_errors=True)
    for parent in parents:
        with suppress(OSError):  # somebody else may have put something there by now
            parent.rmdir()


@contextmanager
def locked_folder(path: Path) -> Iterator[Path]:
    """Makes a folder if it is not there, and has it for this process alone while the block runs.

    Processes that the block starts with ``close_fds=False`` have it too: if this one is killed, nobody else gets the
    folder before the last of them has ended.
    """
    deadline = time.monotonic() + LOCK_SECONDS
    descriptor = -1
    try:
        while descriptor < 0:
            try:
                path.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(path, os.O_RDONLY)
            except (OSError, ValueError) as error:
                raise InputError(f"{path}: no folder can be made there ({error})") from error
            os.set_inheritable(descriptor, True)
            _lock(descriptor, path, deadline)
            if not _is_at(descriptor, path):  # who had it before has finished and moved or removed it
                os.close(descriptor)
                descriptor = -1
        yield path
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _lock(descriptor: int, path: Path, deadline: float) -> None:
    """Waits a little: the processes of a killed command take a moment to end."""
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN):
                return  # some network file systems have no locks; then it is up to the user
            if time.monotonic() > deadline:
                raise InputError(f"{path}: another command is writing there; wait for it or end it") from error
        time.sleep(0.05)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def file_sha256(path: Path) -> str:
    """sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def fsync_path(path: Path) -> None:
    """Returns when a file or folder has reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
