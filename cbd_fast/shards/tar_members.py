"""The members of a tar that somebody else may have made: no header is believed that asks for much memory or time."""

import io
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cbd_fast.errors import first_line, printable
from cbd_fast.shards.manifest import file_size

MAX_HEADER_BYTES = 1 << 20  # of a long name, or of a pax header; Linux has no names of more than 4 KB


def regular_members(path: Path) -> Iterator[tarfile.TarInfo]:
    """Members whose bytes lie in the tar as they are, in its order: no links, devices, folders or sparse files.

    A damaged header ends a tar, as for every reader. A tar that is cut off has its members up to there.

    Args:
        path: an uncompressed tar.

    Raises:
        OSError: the file cannot be read, or is no regular one.
        tarfile.TarError: it is no tar, is cut off, or has a header that cannot be read.
    """
    num_bytes = file_size(path)
    position = -1
    with _own_errors(), _Headers(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
        while (member := tar.next()) is not None:
            if member.offset_data <= position or member.size < 0:
                raise tarfile.ReadError(f"{printable(member.name)} lies before the member before it")
            position = member.offset_data
            tar.members.clear()  # type: ignore[attr-defined]  # it would keep all of them
            if member.isreg() and not member.issparse() and position + member.size <= num_bytes:
                yield member


@contextmanager
def _own_errors() -> Iterator[None]:
    """On forged headers ``tarfile`` raises all sorts: ValueError, IndexError, RecursionError."""
    try:
        yield
    except (OSError, tarfile.TarError):
        raise
    except Exception as error:
        raise tarfile.ReadError(f"a header cannot be read ({first_line(error)})") from error


def read_member(descriptor: int, member: tarfile.TarInfo, max_bytes: int) -> bytes | None:
    """The bytes of a regular member, or None where it has more than ``max_bytes``.

    Args:
        descriptor: of the open tar.
        member: as of ``regular_members``.
        max_bytes: nothing larger is read.
    """
    return os.pread(descriptor, member.size, member.offset_data) if member.size <= max_bytes else None


class _Headers(io.FileIO):
    """A tar as ``tarfile`` sees it: nothing long is read."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)
