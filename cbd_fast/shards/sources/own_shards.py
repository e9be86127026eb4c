"""What is known of tars that we wrote ourselves: their split, and the names that their labels stand for.

A label in a tar is a number. Numbers of two datasets mean different classes, so wherever shards of several folders
come together the names that belong to the numbers are compared.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cbd_fast.errors import InputError, printable
from cbd_fast.shards.manifest import FORMAT, MANIFEST_NAME, is_indexed_in_place, read_manifest

NUM_BYTES_LOOKED_AT = 4096  # of what may be a manifest: its format comes first
MAX_DIGITS = 9
REMEDY = "index them apart, or list all classes with --classes FILE, whose names then decide"


@dataclass(frozen=True, kw_only=True)
class OwnShards:
    """What the manifests beside tars say of them.

    Attributes:
        split_of: split of each tar that we wrote.
        classes_of: names of the classes of each such tar, in the order of their numbers.
        indexed_classes_of: the same for each tar of others that was indexed in a folder below; the labels in them may
            be names, or numbers of other things.
        classes: names of all classes, if we wrote any of the tars.
    """

    split_of: dict[str, str] = field(default_factory=dict)
    classes_of: dict[str, list[str]] = field(default_factory=dict)
    indexed_classes_of: dict[str, list[str]] = field(default_factory=dict)
    classes: list[str] | None = None


def read_own_shards(folder: Path, tars: Collection[str], is_compared: bool) -> OwnShards:
    """What manifests of shards that we wrote, or indexed, say of tars.

    Args:
        folder: the folder that holds the tars.
        tars: their paths below it.
        is_compared: whether the numbers of all must mean the same classes.

    Raises:
        InputError: a manifest is damaged, or two say different things of the same number.
    """
    own, known = OwnShards(), set(tars)
    listed: dict[Path, list[str]] = {}
    for place in sorted({parent for tar in tars for parent in Path(tar).parents}):
        path = folder / place / MANIFEST_NAME
        is_indexed = is_our_manifest(path) and is_indexed_in_place(path.parent)
        if not is_our_manifest(path) or (is_indexed and place == Path()):  # the one that is made anew
            continue
        manifest = read_manifest(path.parent)
        if not is_indexed:
            listed[path] = manifest.classes
        for split, record in manifest.splits.items():
            for tar in known.intersection((place / shard.file).as_posix() for shard in record.shards):
                if is_indexed:
                    own.indexed_classes_of[tar] = manifest.classes
                else:
                    own.split_of[tar], own.classes_of[tar] = split, manifest.classes
    if is_compared:
        _compare(listed)
    return replace(own, classes=max(listed.values(), key=len, default=None))


def is_our_manifest(path: Path) -> bool:
    """Whether a file of a manifest's name is one of ours; others use that name, too."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return FORMAT.encode() in file.read(NUM_BYTES_LOOKED_AT)


def are_numbers(classes: Sequence[str]) -> bool:
    """Whether classes have no names but their numbers."""
    return all(name == str(number) for number, name in enumerate(classes))


class NamesOfNumbers:
    """Names that labels stand for where no manifest of ours says it: the same number must be the same name."""

    def __init__(self, folder: Path, own: OwnShards) -> None:
        self._folder, self._own = folder, own
        self._name_of: dict[str, tuple[str, str]] = {}  # name and tar of each label

    def add(self, tar: str, pairs: Iterable[tuple[str, str]]) -> None:
        """Compares the classes of a tar with those of the tars before.

        Args:
            tar: path of the tar.
            pairs: labels, each with the folder that an image of it came from where we wrote it, else with nothing.

        Raises:
            InputError: a label stands for different classes.
        """
        if not are_numbers(self._own.classes_of.get(tar, [])):
            return  # compared already
        folders: dict[str, set[str]] = {}
        for label, folder in pairs:
            folders.setdefault(label, set()).add(folder)
        classes = self._own.indexed_classes_of.get(tar, [])
        if not are_numbers(classes):
            numbers = [label for label in folders if len(label) < MAX_DIGITS and label.isascii() and label.isdecimal()]
            names = {label: classes[int(label)] for label in numbers if int(label) < len(classes)}
        else:
            names = {label: next(iter(of_label)) for label, of_label in folders.items() if len(of_label) == 1}
            if "" in names.values() or len(names) < max(2, len(folders)) or len(set(names.values())) < len(names):
                return  # these folders are not the classes
        for label, name in names.items():
            other, other_tar = self._name_of.setdefault(label, (name, tar))
            if other != name:
                raise InputError(
                    f"{self._folder}: class {label} is {printable(other)!r} in {other_tar}, but {printable(name)!r} in "
                    f"{tar}, by their {MANIFEST_NAME} or the folders that their images came from; {REMEDY}"
                )


def _compare(listed: dict[Path, list[str]]) -> None:
    if not listed:
        return
    longest = max(listed, key=lambda path: len(listed[path]))
    for path, classes in listed.items():
        if are_numbers(classes) != are_numbers(listed[longest]):
            named, other = (longest, path) if are_numbers(classes) else (path, longest)
            raise InputError(f"{named} names its classes, {other} has only numbers: nothing compares them; {REMEDY}")
        if are_numbers(classes) and len(classes) != len(listed[longest]):
            raise InputError(
                f"{longest} has {len(listed[longest])} classes and {path} {len(classes)}, all without names, so that "
                f"their numbers may mean different things; {REMEDY}"
            )
        for number, (name, other_name) in enumerate(zip(classes, listed[longest], strict=False)):
            if name != other_name:
                raise InputError(
                    f"class {number} is {printable(other_name)!r} in {longest}, but {printable(name)!r} in {path}; "
                    f"{REMEDY}"
                )
