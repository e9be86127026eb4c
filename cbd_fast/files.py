"""Whole files or none: everything is written under a temporary name and renamed when it is complete."""

import argparse
import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cbd_fast.errors import InputError, describe_os_error, full_disk_error
from cbd_fast.folder_lock import locked_folder

PARTIAL_SUFFIX = ".cbd_fast-partial"  # nobody else's file or folder has such a name


def expanded(path: str) -> str:
    """A path as people write it, with the home folder in place of ``~`` and variables in place of ``$NAME``.

    Raises:
        InputError: there is no such user or variable; no folder shall get such a name.
    """
    whole = os.path.expandvars(os.path.expanduser(path))
    if whole.startswith("~"):
        raise InputError(f"{path}: there is no such user, or it has no home folder; write the whole path")
    if unknown := re.search(r"\$\{([^}]*)\}", whole):
        raise InputError(f"{path}: the environment variable {unknown[1]} is not set; set it, or write the whole path")
    return whole


def user_path(text: str) -> Path:
    """The path that an argument of a command means, for argparse's ``type``; a shell leaves ``--out=~/x`` as it is."""
    try:
        return Path(expanded(text))
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def write_atomically(path: Path, data: bytes | str) -> None:
    """Writes ``data`` to ``path``; after a crash the file holds the old content or the new, never a part."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data)


@contextmanager
def atomic_file(path: Path, num_bytes: int | None = None) -> Iterator[Path]:
    """Yields a path beside ``path`` to write to; the file becomes ``path`` when the block ends without an error.

    It is on the disk before it gets its name, and so is the name when the block has ended. After an error nothing is
    left; after a kill the file stays under its temporary name, which nothing opens.

    Args:
        path: the file's name in the end.
        num_bytes: about how large it will be, for the message if the disk is full.

    Raises:
        OSError: it cannot be written; the message says how much is missing where the disk is full.
    """
    temporary = path.with_name(path.name + PARTIAL_SUFFIX)
    try:
        yield temporary
        publish(temporary, path)
    except BaseException as error:
        full = full_disk_error(error, path, num_bytes) if isinstance(error, Exception) else None
        with suppress(OSError):  # such as where the folder has become read-only
            temporary.unlink(missing_ok=True)
        if full is not None and full is not error:
            raise full from error
        raise


def publish(temporary: Path, path: Path) -> None:
    """Gives a finished file or folder its name; returns when both it and the name have reached the disk."""
    settle(temporary)
    os.replace(temporary, path)
    fsync_path(path.parent)


def settle(path: Path) -> None:
    """Returns when a file or folder has reached the disk; a file's mode becomes the one of this process's new files.

    Some libraries write files that nobody else may read, whatever the umask.
    """
    if not path.is_dir():
        path.chmod(0o666 & ~_umask())
    fsync_path(path)


def _umask() -> int:
    """What new files may not be; to ask the system itself means to change it for a moment, for all threads."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next((int(line.split()[1], 8) for line in lines if line.startswith("Umask:")), 0o022)


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
        raise InputError(f"{path}: no folder can be made there ({_reason(error)})") from error
    try:
        yield temporary
        for file in temporary.rglob("*"):
            settle(file)
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


def file_sha256(path: Path) -> str:
    """sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def fsync_path(path: Path) -> None:
    """Returns when a file or folder has reached the disk, as far as its file system knows of such a thing."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # some network file systems, and those in user space, cannot do it for folders
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(descriptor)


def _reason(error: OSError | ValueError) -> str:
    return describe_os_error(error) if isinstance(error, OSError) else str(error)
