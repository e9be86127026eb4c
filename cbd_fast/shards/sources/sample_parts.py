"""What in a sample of a tar is its image, and what is its label."""

import re
import tarfile
from collections.abc import Iterable
from functools import cache
from typing import Any

from PIL import Image

from cbd_fast.errors import printable
from cbd_fast.shards.sources.tar_samples import PassedOver, Sample, check_stored_plainly, read_samples

LABEL_EXTENSIONS = ("cls", "txt")
NUM_KEYS_SHOWN = 20
_OWN_NAME = re.compile(r"[0-9]{9}\.[a-z]+")  # of members that we wrote


def missing_label(sample: Sample, extension: str, others: list[str], metadata: dict[str, Any]) -> str:
    """Why a sample has no label that can be used."""
    if extension in sample.members:
        return "has a label in .cls and one in .txt, where the others have theirs"
    if others:
        return f"has no .{extension}, where the others have their label, but .{others[0]}"
    hidden = [each for each in sample.members if each.rpartition(".")[2] in (*LABEL_EXTENSIONS, "json")]
    if hidden and "json" not in sample.members:
        return (
            "has no label: what follows the first dot of a name is its extension, here "
            f"{printable(hidden[0])!r}; rename the members without further dots"
        )
    keys = printable(list(metadata)[:NUM_KEYS_SHOWN])
    hint = f"; its .json has {keys}: choose one with --label-key" if metadata else ""
    return f"has no label, neither .cls nor .txt{hint}"


def folder_before(name: str, metadata: dict[str, Any]) -> str:
    """The folder that an image came from, if we wrote the member; else nothing."""
    path = metadata.get("path")
    if not isinstance(path, str) or not _OWN_NAME.fullmatch(name):
        return ""
    return path.rpartition("/")[0].rpartition("/")[2]


def label_extension_of(files: Iterable[str]) -> str:
    """Which member holds the labels: ``.cls``, unless more samples of the first tar with labels have only ``.txt``."""
    num_cls = num_txt = 0
    for file in files:
        for sample in read_samples(file, lambda _: False, PassedOver()):
            num_cls += "cls" in sample.members
            num_txt += "txt" in sample.members and "cls" not in sample.members
        if num_cls or num_txt:
            break
    return "txt" if num_txt > num_cls else "cls"


def json_label(metadata: dict[str, Any], key: str, name: str) -> str:
    """The label under a key of the ``.json`` of an image.

    Args:
        metadata: the object in the ``.json``.
        key: the key, with dots into nested objects.
        name: name of the image, for the message.

    Raises:
        ValueError: there is none; the message is the reason.
    """
    value: Any = metadata
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if isinstance(value, str | int) and not isinstance(value, bool):
        return str(value).strip()
    if isinstance(value, float):
        what = f"has the label {value} under {key!r} in its .json, which is no name or whole number"
    else:
        what = f"has no label under {key!r} in its .json, which has {printable(list(metadata)[:NUM_KEYS_SHOWN])}"
    raise ValueError(f"{printable(name)} {what}")


def first_image(sample: Sample, image_extension: str | None) -> tarfile.TarInfo | None:
    """The member that is a sample's image, by its extension if one is given; None if there is none."""
    if image_extension is not None:
        return sample.members.get(image_extension.lower())
    extensions = _image_extensions_of(sample)
    return sample.members[extensions[0]] if extensions else None


def check_image(sample: Sample, image: tarfile.TarInfo, image_extension: str | None) -> None:
    """Raises ``ValueError`` if it is not clear which image is the sample's, or it is not in the tar in one piece."""
    if sample.twice is not None:
        raise ValueError(f"{printable(sample.twice)} is there twice")
    images = [each for each in sample.members if _is_image(each)]
    if image_extension is None and len(images) > 1:
        before = {each.rpartition(".")[0] for each in sample.members if each.endswith((".cls", ".txt"))}
        candidates = {*_image_extensions_of(sample), *(each for each in images if each.rpartition(".")[0] in before)}
        if len(candidates) > 1:
            has_dots = sum("." in each for each in candidates) >= len(candidates) - 1
            hint = ", or rename the members, as what follows a name's first dot is its extension" if has_dots else ""
            others = printable(sorted(candidates))
            raise ValueError(
                f"beside {printable(image.name)} there are other images ({others}); choose one with --image{hint}"
            )
    check_stored_plainly(image)


def _image_extensions_of(sample: Sample) -> list[str]:
    extensions = [extension for extension in sample.members if _is_image(extension)]
    return [extension for extension in extensions if "." not in extension] or extensions


def _is_image(extension: str) -> bool:
    return extension.rpartition(".")[2] in _image_extensions()


@cache
def _image_extensions() -> frozenset[str]:
    """Extensions of all formats that Pillow reads, without the dot."""
    return frozenset(name[1:] for name, kind in Image.registered_extensions().items() if kind in Image.OPEN)
