"""Files beside images that are no images by their kind: passed over and counted, as nobody meant them to be any."""

import os
from collections import Counter

from cbd_fast.errors import printable

NAMES = {
    "thumbs.db", "ehthumbs.db", "desktop.ini", "picasa.ini", "icon\r", "readme", "license", "licence", "copying",
    "authors", "changelog", "makefile", "md5sums", "sha256sums",
}  # fmt: skip
EXTENSIONS = {
    # beside single images
    "xmp", "aae", "json", "xml", "txt", "yaml", "yml", "ini", "cls", "mov", "mp4", "thm", "wld", "jgw", "pgw",
    # tables, lists and notes
    "csv", "tsv", "jsonl", "ndjson", "parquet", "xls", "xlsx", "ods", "db", "sqlite", "sqlite3", "md", "rst", "html",
    "htm", "css", "js", "pdf", "doc", "docx", "rtf", "log", "cfg", "conf", "toml", "nfo", "url", "lnk", "md5", "sha1",
    "sha256", "py", "ipynb", "m", "r", "sh", "bat",
    # what else data is kept in
    "npy", "npz", "pkl", "pickle", "pt", "pth", "mat", "tfrecord", "tfrecords", "lmdb", "mdb", "avi", "mkv", "webm",
    "mp3", "wav",
}  # fmt: skip
ARCHIVES = {"zip", "tar", "gz", "tgz", "bz2", "xz", "zst", "7z", "rar"}
SYSTEM_FOLDERS = {"__macosx", "@eadir", "lost+found", "$recycle.bin", "system volume information"}  # and hidden ones


def is_system_folder(name: str) -> bool:
    """Whether a folder is a hidden one, or one that systems make, with thumbnails and the like in it."""
    return name.startswith(".") or name.casefold() in SYSTEM_FOLDERS


class PassedOver:
    """Counts files that are no images by their kind."""

    def __init__(self) -> None:
        self._kinds: Counter[str] = Counter()
        self._archives: list[str] = []
        self._first = ""

    def takes(self, name: str) -> bool:
        """Whether a file is none that may be an image; then it is counted.

        Args:
            name: path of the file, as it is shown.
        """
        file = os.path.basename(name).casefold()
        extension = file.rpartition(".")[2] if "." in file else ""
        if extension in ARCHIVES:
            self._archives.append(name)
        elif file in NAMES or extension in EXTENSIONS:
            self._kinds[f".{extension}" if extension else file] += 1
            self._first = self._first or name
        else:
            return False
        return True

    def notes(self, split: str) -> list[str]:
        """What people should know of the files of a split that were passed over."""
        notes = []
        if self._kinds:
            kinds = ", ".join(f"{number:,} {kind}" for kind, number in self._kinds.most_common(5))
            notes.append(
                f"{split}: {self._kinds.total():,} files that are no images are passed over ({printable(kinds)}), such "
                f"as {printable(self._first)}"
            )
        if self._archives:
            notes.append(
                f"{split}: {len(self._archives):,} archives are passed over, such as {printable(self._archives[0])}; "
                "unpack them if they hold images"
            )
        return notes
