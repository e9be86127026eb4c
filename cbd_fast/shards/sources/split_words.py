"""Which split a name of a tar or a folder means, by the words in it, as people write them.

Words end at digits, at anything that is no letter, and where capitals begin (``TestData_0``, ``val2017``). Test images
must never get into training because of a name, so a name that may mean a split, or several, is never guessed at.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

SPLIT_WORDS = {
    "train": "train", "training": "train", "trn": "train",
    "val": "val", "vals": "val", "valid": "val", "validation": "val", "validate": "val", "eval": "val",
    "evaluation": "val", "dev": "val", "development": "val",
    "test": "test", "tests": "test", "testing": "test", "tst": "test",
}  # fmt: skip
# what is written in one with them, as in testset or trainimages
TAILS = (
    "set", "sets", "data", "dataset", "datasets", "split", "splits", "subset", "image", "images", "img", "imgs", "pic",
    "pics", "photo", "photos", "jpeg", "jpegs", "png", "shard", "shards", "part", "parts",
    "sample", "samples", "file", "files", "tar", "tars", "batch", "batches", "fold", "folds", "list", "lt",
)  # fmt: skip
# what may stand beside them in a folder's name that means a split and nothing else
FILLERS = {*TAILS, "the", "my", "new", "all", "full", "final", "mini", "small", "large", "v", "x", "of", "for"}
# what may mean a split, or something else
UNCLEAR_WORDS = {
    "holdout", "heldout", "held", "hold", "unseen", "tr", "te", "ts", "va", "vl", "pretrain", "query", "gallery",
}  # fmt: skip
# beginnings of words that only look like it
HARMLESS_WORDS = {
    "latest", "greatest", "contest", "protest", "attest", "detest", "fastest", "smartest", "shortest", "lightest",
    "brightest", "neatest", "cutest", "whitest", "hottest", "fattest", "wettest", "softest", "sweetest", "quietest",
    "loudest", "fittest", "testament", "testimon", "testify", "testost", "strain", "restrain", "constrain", "quatrain",
    "trainer", "trainee", "invalid", "interval", "oval", "naval", "rival", "carnival", "festival", "arrival",
    "retrieval", "medieval", "primeval", "removal", "survival", "approval", "revival", "upheaval", "archival", "larval",
}  # fmt: skip

_CAMEL = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+")
_LETTERS = re.compile(r"[^\W\d_]+")
_WORD = "|".join(sorted(SPLIT_WORDS, key=len, reverse=True))
_TAILS = f"({'|'.join(TAILS)}){{0,3}}"  # not more, as forged names would take for ever to search
_COMPOUND = re.compile(rf"(?P<words>({_WORD}){{1,3}}){_TAILS}")
_LOOKS_LIKE = re.compile(rf".*(train|training|test|testing|val|valid|validation){_TAILS}|(train|test|valid).*")


@dataclass(frozen=True, kw_only=True)
class NamedSplits:
    """What the words of a name say.

    Attributes:
        splits: splits that words name without doubt.
        unclear: words that may mean a split.
        others: all other words, but for those that say nothing beside a split, such as ``data``.
    """

    splits: frozenset[str]
    unclear: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


def named_splits(name: str) -> NamedSplits:
    """The splits that a name without its extension means, such as ``testset-0`` or ``train_val``."""
    splits: set[str] = set()
    unclear: list[str] = []
    others: list[str] = []
    for run in _LETTERS.findall(name):
        words = _words_of(run)
        if not any(_meaning(word)[0] for word in words):  # capitals as in TESTset mislead
            words = [run.lower()]
        for word in words:
            found, is_unclear = _meaning(word)
            splits |= found
            if is_unclear:
                unclear.append(word)
            elif not found and word not in FILLERS:
                others.append(word)
    return NamedSplits(splits=frozenset(splits), unclear=tuple(unclear), others=tuple(others))


def folders_named_as_splits(names: Iterable[str]) -> list[str]:
    """Those names of folders that mean splits and nothing else, as ``train`` or ``val2017`` do.

    Where folders of several splits have the same other words, as ``cats_train`` and ``cats_test`` have, these are their
    dataset's.
    """
    found = {name: named_splits(name) for name in names}
    splits_of: dict[tuple[str, ...], set[str]] = {}
    for named in found.values():
        splits_of.setdefault(named.others, set()).update(named.splits)
    are_splits = [
        name
        for name, named in found.items()
        if named.splits and not named.unclear and (not named.others or len(splits_of[named.others]) > 1)
    ]
    rest = [name for name in found if name not in are_splits]
    if are_splits and all(found[name].unclear and not found[name].others for name in rest):
        return list(found)
    return are_splits


def _words_of(run: str) -> list[str]:
    """Words of a run of letters, in small letters."""
    return [word.lower() for word in _CAMEL.findall(run)] if run.isascii() else [run.lower()]


def _meaning(word: str) -> tuple[frozenset[str], bool]:
    """The splits that a word in small letters names, and whether it is unclear if it names one."""
    if match := _COMPOUND.fullmatch(word):
        # the longest words first, so that validation is not valid with something behind it
        return frozenset(SPLIT_WORDS[part] for part in re.findall(_WORD, match["words"])), False
    if word in UNCLEAR_WORDS:
        return frozenset(), True
    rests = [word.removeprefix(harmless) for harmless in HARMLESS_WORDS if word.startswith(harmless)]
    return frozenset(), all(map(_LOOKS_LIKE.fullmatch, rests or [word]))
