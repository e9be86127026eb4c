"""Foreign tars below a folder, and the split of each: by patterns, our manifests, or words of its path."""

import fnmatch
import os
import re
from collections.abc import Collection, Iterator, Mapping
from itertools import groupby
from pathlib import Path

from cbd_fast.errors import InputError, printable
from cbd_fast.shards.sources.base import SPLITS, check_folder, refuse_unlisted
from cbd_fast.shards.sources.split_words import named_splits

COMPRESSED_EXTENSIONS = (
    ".tar.gz", ".tgz", ".tar.bz2", ".tbz", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".tar.lz4", ".tar.lzma",
    ".tar.lz", ".tar.z", ".tar.br",
)  # fmt: skip
ARCHIVE_EXTENSIONS = (".zip", ".7z", ".rar", ".gz", ".bz2", ".xz", ".zst")
NUM_SHOWN = 3
MAX_PATTERNS_SHOWN = 30


def find_tars(folder: Path, may_have_others: bool, notes: list[str]) -> list[str]:
    """Paths below a folder of its tars, sorted; folders that are links are followed, hidden files passed over.

    Args:
        folder: the folder that holds the tars, at any depth.
        may_have_others: whether compressed tars may be there, to be passed over.
        notes: gets what is passed over.

    Raises:
        InputError: there is no such folder, or a tar is compressed, a link to nothing, or has no printable name.
    """
    check_folder(folder)
    files = sorted(_files_below(folder))
    if packed := [file for file in files if file.lower().endswith(COMPRESSED_EXTENSIONS)]:
        if not may_have_others:
            raise InputError(
                f"{folder}: compressed shards such as {printable(packed[0])} cannot be indexed; unpack them first, or "
                "say which tars to take with --train 'PATTERN'"
            )
        notes.append(f"{len(packed)} compressed tars are passed over, such as {printable(packed[0])}")
    if others := [file for file in files if file.lower().endswith(ARCHIVE_EXTENSIONS) and file not in packed]:
        notes.append(f"{len(others)} archives that are no tars are passed over, such as {printable(others[0])}")
    tars = [file for file in files if file.lower().endswith(".tar")]
    if odd := [file for file in tars if not file.isprintable()]:
        raise InputError(f"{folder}: the tar {os.fsencode(odd[0])!r} has no printable UTF-8 name; rename it")
    if lost := [file for file in tars if not (folder / file).is_file()]:
        raise InputError(f"{folder}: {lost[0]} is a link to nothing, or no file; mend or remove it")
    return list(_without_links_to_others(folder, tars, notes))


def split_tars(
    folder: Path, tars: Collection[str], globs: Mapping[str, str], split_of: Mapping[str, str], notes: list[str]
) -> dict[str, list[str]]:
    """Tars of each split.

    Args:
        folder: the folder that holds them.
        tars: their paths below it.
        globs: pattern of each split's tars; if there are none, ``split_of`` and then words in their paths tell.
        split_of: splits of tars that are known beforehand.
        notes: gets which tars are which split.

    Raises:
        InputError: a pattern fits no tar, a tar fits several, no tar is for training, or a path does not say clearly
            which split it is.
    """
    splits = _by_globs(folder, tars, globs, notes) if globs else _by_words(folder, tars, split_of)
    if not splits.get("train"):
        raise InputError(f"{folder}: holds no tars for training; say which they are with --train 'PATTERN'")
    if not globs and len(splits) == 1 and not split_of and not any(map(_named_split, splits["train"])):
        notes.append("train: no name of a tar has a word such as train, val or test: all are for training")
    for split, paths in splits.items():
        notes.append(f"{split}: {len(paths):,} tars: {describe_paths(paths)}")
    return splits


def describe_paths(paths: Collection[str]) -> str:
    """All of many paths in little room, such as ``train-{0000..0146}.tar, x.tar``."""
    template_of = {path: re.sub(r"\d+", "0", path) for path in paths}
    patterns = []
    for _, group in groupby(sorted(paths, key=lambda path: (template_of[path], path)), template_of.__getitem__):
        alike = list(group)
        patterns.append(alike[0] if len(alike) == 1 else _pattern(alike))
    more = f" and {len(patterns) - MAX_PATTERNS_SHOWN:,} others" if len(patterns) > MAX_PATTERNS_SHOWN else ""
    return ", ".join(map(printable, patterns[:MAX_PATTERNS_SHOWN])) + more


def _pattern(alike: list[str]) -> str:
    """Paths that differ in their numbers alone, with the smallest and the largest of each."""
    texts = re.split(r"\d+", alike[0])
    pattern, num_covered = texts[0], 1
    for position, numbers in enumerate(zip(*(re.findall(r"\d+", path) for path in alike), strict=True)):
        first, last = min(numbers, key=int), max(numbers, key=int)
        num_covered *= int(last) - int(first) + 1
        pattern += (first if first == last else f"{{{first}..{last}}}") + texts[position + 1]
    return pattern if num_covered == len(alike) else f"{pattern} ({len(alike):,} of these)"


def _files_below(folder: Path) -> Iterator[str]:
    """Path below a folder of every visible file; a link into the folder or back above it is not followed."""
    root = folder.resolve()
    seen = {(status.st_dev, status.st_ino) for status in map(os.stat, root.parents)}
    for path, subfolders, files in os.walk(folder, onerror=refuse_unlisted, followlinks=True):
        status = os.stat(path)
        if (status.st_dev, status.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        visible = [name for name in sorted(subfolders) if not name.startswith(".")]
        subfolders[:] = [name for name in visible if not _is_link_into(Path(path, name), root)]
        prefix = "" if path == os.fspath(folder) else os.path.relpath(path, folder) + "/"
        yield from (prefix + name for name in files if not name.startswith("."))


def _is_link_into(path: Path, root: Path) -> bool:
    """Whether a folder is a link to one that is found below the root itself."""
    return path.is_symlink() and path.resolve().is_relative_to(root)


def _without_links_to_others(folder: Path, tars: list[str], notes: list[str]) -> Iterator[str]:
    """The tars without the links to others of them, whose images would be there twice."""
    links = {tar: os.path.realpath(folder / tar) for tar in tars if (folder / tar).is_symlink()}
    there = {os.path.realpath(folder / tar) for tar in tars if tar not in links} if links else set()
    twice = []
    for tar in tars:
        if tar in links and links[tar] in there:
            twice.append(tar)
        else:
            there.add(links.get(tar, ""))
            yield tar
    if twice:
        notes.append(f"{len(twice)} links to other tars are passed over, such as {twice[0]}")


def _by_globs(folder: Path, tars: Collection[str], globs: Mapping[str, str], notes: list[str]) -> dict[str, list[str]]:
    splits = {split: [tar for tar in tars if fnmatch.fnmatch(tar, pattern)] for split, pattern in globs.items()}
    for split, pattern in globs.items():
        if not splits[split]:
            raise InputError(f"{folder}: no tar fits --{split} {pattern!r}")
    chosen = [tar for of_split in splits.values() for tar in of_split]
    if twice := sorted({tar for tar in chosen if chosen.count(tar) > 1} if len(set(chosen)) < len(chosen) else ()):
        raise InputError(f"{folder}: {len(twice)} tars fit several patterns, such as {twice[0]}; narrow them")
    if others := sorted(set(tars) - set(chosen)):
        notes.append(f"{len(others):,} tars fit no pattern and are left out: {describe_paths(others)}")
    return splits


def _by_words(folder: Path, tars: Collection[str], split_of: Mapping[str, str]) -> dict[str, list[str]]:
    splits: dict[str, list[str]] = {}
    nameless: list[str] = []
    problems: dict[str, list[str]] = {}
    for tar in tars:
        try:
            split = split_of.get(tar) or _named_split(tar)
        except ValueError as error:
            problems.setdefault(str(error), []).append(tar)
            continue
        (splits.setdefault(split, []) if split else nameless).append(tar)
    if nameless and splits:
        problems["named for no split, as others are"] = nameless
    if problems:
        shown = "; ".join(f"{describe_paths(paths)} ({problem})" for problem, paths in problems.items())
        options = " ".join(f"--{split} 'PATTERN'" for split in SPLITS)
        raise InputError(f"{folder}: which tars are for training is not clear: {shown}; say it with {options}")
    if nameless:
        splits["train"] = nameless
    return {split: splits[split] for split in sorted(splits, key=SPLITS.index)}


def _named_split(tar: str) -> str | None:
    """The split that the tar's own name means, or the nearest folder; None if none does.

    Raises:
        ValueError: it is not clear which one; the message says why.
    """
    nearest: str | None = None
    for part in reversed(os.path.splitext(tar)[0].split("/")):
        named = named_splits(part)
        if nearest is not None:
            if nearest == "train" and named.splits and "train" not in named.splits:
                raise ValueError(f"named for train, in a folder named for {' and '.join(sorted(named.splits))}")
            continue
        if len(named.splits) > 1:
            raise ValueError(f"named for {' and '.join(sorted(named.splits))}")
        # two letters beside a word that is clear are something else, such as a language
        unclear = [word for word in named.unclear if not named.splits or len(word) > 2]
        if unclear and named.splits <= {"train"}:
            raise ValueError(f"{printable(unclear[0])!r} may mean a split or not")
        nearest = next(iter(named.splits), None)
    return nearest
