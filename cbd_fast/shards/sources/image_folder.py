"""Image folders: one folder per split, with one folder of images per class in it."""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

from cbd_fast.errors import InputError, printable
from cbd_fast.files import user_path
from cbd_fast.registry import SOURCES
from cbd_fast.shards.sources.base import (
    SPLITS,
    Source,
    SourceImage,
    SourceLayout,
    check_folder,
    file_image,
    files_below,
    given_splits,
    refuse_unlisted,
    same_spelling,
)
from cbd_fast.shards.sources.not_images import PassedOver, is_system_folder
from cbd_fast.shards.sources.split_words import folders_named_as_splits, named_splits

NUM_SHOWN = 3


@SOURCES.register("folder")
class ImageFolder(SourceLayout):
    """One folder per split, with one folder of images per class in it."""

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Adds the folder of each split."""
        parser.add_argument(
            "--train", type=user_path, required=True, metavar="DIR", help="its folders name the classes"
        )
        parser.add_argument("--val", type=user_path, metavar="DIR")
        parser.add_argument("--test", type=user_path, metavar="DIR")
        parser.add_argument(
            "--nested", action="store_true", help="the images of a class lie only in folders inside its folder"
        )

    @staticmethod
    def open(arguments: argparse.Namespace) -> Source:
        """The folders that the options name."""
        return folder_source(given_splits(arguments), is_nested=arguments.nested)


def folder_source(roots: dict[str, Path], is_nested: bool = False) -> Source:
    """One folder per split with one folder per class in it; every file below the folder of a class is taken.

    Files that are no images by their kind, such as ``Thumbs.db`` or ``.json`` beside images, are passed over.

    Args:
        roots: the folder of each split; ``train`` names the classes, in sorted order.
        is_nested: whether folders of classes may hold nothing but folders, which otherwise means that the classes are
            one level deeper.

    Raises:
        InputError: a folder is missing or empty, has folders of splits or of groups of classes in place of classes, or
            another split has classes that ``train`` lacks.
    """
    notes: list[str] = []
    folders = {split: _class_folders(split, root, is_nested, notes) for split, root in roots.items()}
    classes = sorted(folders["train"])
    label_of = {same_spelling(name): label for label, name in enumerate(classes)}
    if len(label_of) < len(classes):
        twice = [ascii(name) for name in classes if classes[label_of[same_spelling(name)]] != name]
        raise InputError(
            f"{roots['train']}: the class folder {twice[0]} has a name that another has, too, in another Unicode form; "
            "make one folder of the two, or rename one"
        )
    for split, by_name in folders.items():
        if unknown := sorted(name for name in by_name if same_spelling(name) not in label_of):
            shown = ", ".join(map(repr, unknown[:NUM_SHOWN]))
            raise InputError(
                f"{roots[split]}: {len(unknown)} classes that {roots['train']} lacks, such as {shown}; "
                f"a model cannot learn them: add training images or remove them from {split}"
            )

    def images() -> Iterator[SourceImage]:
        for split, by_name in folders.items():
            is_empty, passed = True, PassedOver()
            for name, folder in by_name.items():
                for file in files_below(folder, passed):
                    is_empty = False
                    yield file_image(split, roots[split], f"{name}/{file}", label_of[same_spelling(name)])
            if is_empty:
                raise InputError(f"{roots[split]}: its class folders hold no files")
            notes.extend(passed.notes(split))

    searched = list(roots.values())
    return Source(kind="folder", classes=classes, images=images, roots=searched, searched=searched, notes=notes)


def _class_folders(split: str, root: Path, is_nested: bool, notes: list[str]) -> dict[str, Path]:
    check_folder(root)
    folders: dict[str, Path] = {}
    loose: list[str] = []
    try:
        for entry in os.scandir(root):
            if entry.is_dir() and not is_system_folder(entry.name):
                folders[entry.name] = Path(entry.path)
            elif entry.is_symlink() and not os.path.exists(entry.path) and not entry.name.startswith("."):
                raise InputError(f"{printable(entry.path)}: is a link to nothing; mend or remove it")
            elif not entry.is_dir() and not entry.name.startswith(".") and not PassedOver().takes(entry.name):
                loose.append(entry.name)
    except OSError as error:
        refuse_unlisted(error)
    if not folders:
        raise InputError(f"{root}: holds no class folders; it should hold one folder of images per class")
    for name in folders:
        if not name.isprintable():  # control characters, or bytes that are not UTF-8
            raise InputError(f"{root}: the class folder {os.fsencode(name)!r} has no printable UTF-8 name; rename it")
    if loose:
        notes.append(
            f"{split}: {len(loose):,} files that are in no class folder are not taken, such as {printable(min(loose))}"
        )
    _check_level(root, folders, is_nested)
    return folders


def _check_level(root: Path, folders: dict[str, Path], is_nested: bool) -> None:
    """Raises ``InputError`` if the classes are at another level: above them are splits, or groups of classes."""
    if _are_splits(folders):
        raise InputError(
            f"{root}: its folders are splits ({_shown(folders)}), not classes; give the folder of each: "
            f"{_options(root, folders)}"
        )
    inner: dict[str, list[str]] = {}
    for name, folder in sorted(folders.items()):
        try:
            entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
        except OSError as error:
            refuse_unlisted(error)
        if any(not entry.is_dir() and not PassedOver().takes(entry.name) for entry in entries):
            return  # it holds images
        inner[name] = [entry.name for entry in entries if entry.is_dir() and not is_system_folder(entry.name)]
    name, names = max(inner.items(), key=lambda item: len(item[1]))
    if all(_are_splits(each) for each in inner.values() if each):
        if any(inner.values()):
            raise InputError(
                f"{root / name}: holds folders of splits ({_shown(names)}) in the folder of a class; put the splits "
                "above the classes, as in train/CLASS and test/CLASS, or write lists for the source 'list'"
            )
    elif len(names) > 1 and not is_nested:
        raise InputError(
            f"{root}: its folders hold no images but folders, as {name} does ({_shown(names)}); if those are the "
            f"classes, give the folder that holds them (such as {root / name}), and if {name} is one, add --nested"
        )


def _are_splits(names: "dict[str, Path] | list[str]") -> bool:
    """Whether folders are named as splits: two of them, or all that there are."""
    named = folders_named_as_splits(names)
    return len(named) > 1 or (len(named) == 1 and len(names) == 1)


def _options(root: Path, names: dict[str, Path]) -> str:
    folder_of: dict[str, str] = {}
    for name in sorted(folders_named_as_splits(names), key=len, reverse=True):
        folder_of |= dict.fromkeys(named_splits(name).splits, name)  # that of the shortest name
    return " ".join(f"--{split} {root / folder_of[split]}" for split in SPLITS if split in folder_of)


def _shown(names: "dict[str, Path] | list[str]") -> str:
    shown = [printable(name) for name in sorted(names)[: 2 * NUM_SHOWN]]
    return ", ".join(shown) + (", ..." if len(names) > len(shown) else "")
