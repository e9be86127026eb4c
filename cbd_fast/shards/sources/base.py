"""What a source suggestions: one image, not yet read."""

import os
import stat
from dataclasses import dataclass

SPLITS = ("train", "val", "test")
MAX_LABEL = 2**24  # a larger one is something else, and the classes up to it would not fit into memory
MAX_FILE_BYTES = 2**30  # no image is larger


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceImage:
    """An image that was offered, not yet read.

    Attributes:
        split: ``train``, ``val`` or ``test``.
        name: path below the split's root, ``/`` between its parts; unique in the split.
        label: number of the class, or its name where the source does not know the classes beforehand.
        num_bytes: size of the file; None if there is no such file.
        path: the file that holds it, or None if ``data`` does.
        offset: of its first byte, where the file holds more than this image.
        data: its bytes, where no file holds them.
        facts: what else the source knows, as a JSON object for the shard.
        mtime_ns: when the file was last changed.
    """

    split: str
    name: str
    label: int | str
    num_bytes: int | None
    path: str | None = None
    offset: int | None = None
    data: bytes | None = None
    facts: str | None = None
    mtime_ns: int = 0

    def read(self) -> bytes:
        """The image's file.

        Raises:
            OSError: it cannot be read.
        """
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
