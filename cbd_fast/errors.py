"""Errors whose messages are for users, and what is told of the errors of others."""

import errno
import os
import re
import resource
import shutil
import signal
from pathlib import Path

# What the machine lacks, or does not allow, in place of a defect of ours
_ENVIRONMENT_ERRNOS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE,
    errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ENAMETOOLONG, errno.ENOMEM, errno.ENODEV, errno.EXDEV, errno.EBUSY,
    errno.ETXTBSY, errno.EAGAIN, errno.ELOOP,
}  # fmt: skip
_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)
AFTER_MENDING = "when that is mended, give the same command again"


class InputError(ValueError):
    """What the user gave cannot be used: the message says what is wrong, with the value, where, and what to do."""


class RunError(RuntimeError):
    """A run that began cannot go on (a diverged loss, too many bad images): the message says where and why."""


class Stopped(KeyboardInterrupt):
    """A signal asks this process to end.

    Attributes:
        signum: number of the signal.
    """

    def __init__(self, signum: int, message: str = "give the same command again to go on") -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}; {message}")
        self.signum = signum


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without the place in a library's source that some begin with."""
    lines = str(error).strip().splitlines()
    return re.sub(r"^\w+, /\S+:\d+, ", "", lines[0]) if lines else type(error).__name__


def printable(text: object, *, keep_bytes: bool = False) -> str:
    """A text from outside, such as a file's or a class's name, as it may be shown on a terminal.

    Control characters, among them line breaks and the beginnings of terminal escapes, marks that turn the direction
    of writing, and bytes that are no text are shown by their numbers, as Python's ``repr`` does.

    Args:
        text: a name or a message.
        keep_bytes: whether bytes that are no text, which Python has as lone surrogates, stay what they are.
    """
    return "".join(
        character
        if character.isprintable() or (keep_bytes and "\udc80" <= character <= "\udcff")
        else character.encode("unicode_escape").decode()
        for character in str(text)
    )


def is_of_environment(error: OSError) -> bool:
    """Whether an error is one that users can do something about, such as a full disk, and no defect of ours."""
    return error.errno in _ENVIRONMENT_ERRNOS


def describe_os_error(error: OSError) -> str:
    """Which file, what is wrong, and what is missing, in one line."""
    where = f"{printable(os.fsdecode(error.filename))}: " if isinstance(error.filename, (str, bytes, Path)) else ""
    what = error.strerror or first_line(error)
    if error.errno in _FULL_ERRNOS and where and not what.endswith(" left there)"):
        what += f" ({_free_space(Path(os.fsdecode(error.filename)))})"
    elif error.errno in (errno.EMFILE, errno.ENFILE):
        what += f" (this process may have {resource.getrlimit(resource.RLIMIT_NOFILE)[0]}; raise it with ulimit -n)"
    return where + what


def full_disk_error(error: Exception, path: Path, num_bytes: int | None) -> OSError | None:
    """An error of a library that could not write, as one that says which file and how much is missing; or None.

    Args:
        error: an error of the system, or of a library that has only put the system's into its words.
        path: the file that was being written.
        num_bytes: size that the file was to have, where that is known.
    """
    code = error.errno if isinstance(error, OSError) else None
    if code is None and (match := re.search(r"\(os error (\d+)\)", str(error))):  # Rust's, as in safetensors
        code = int(match[1])
    if code is None and re.search(r"requested and \d+ written", str(error)):  # NumPy's
        code = errno.ENOSPC
    if code is None:
        return None
    if code not in _FULL_ERRNOS:
        return error if isinstance(error, OSError) and error.filename else OSError(code, os.strerror(code), str(path))
    needed = f"needs {_size(num_bytes)}, " if num_bytes else ""
    return OSError(code, f"{os.strerror(code)} ({needed}{_free_space(path)})", str(path))


def _free_space(path: Path) -> str:
    folder = next((parent for parent in (path, *path.parents) if parent.is_dir()), Path("/"))
    return f"{_size(shutil.disk_usage(folder).free)} left there"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"
