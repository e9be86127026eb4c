"""Labels as texts: which are numbers of classes, which only look like it, and what one means where classes are known.

Meaning is never guessed from a single value: what other labels are decides whether a text is a number or a name.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

from cbd_fast.errors import printable
from cbd_fast.shards.sources.base import MAX_LABEL, SourceImage, has_control_characters, same_spelling
from cbd_fast.shards.sources.own_shards import are_numbers

NUM_SHOWN = 40  # characters of a label in a message
_NUMBER = re.compile(r"0{0,20}[0-9]{1,8}")
_LIKE_NUMBER = re.compile(r"[+-]?(0[xXoObB][0-9a-fA-F]+|[\d.,_'%]*\d[\d.,_'%]*)")


def is_number(text: str) -> bool:
    """Whether a label is the number of a class: ASCII digits, not too large."""
    return _NUMBER.fullmatch(text) is not None and int(text) <= MAX_LABEL


def looks_like_number(text: str) -> bool:
    """Whether a label is a number of any sort, such as -1, 3.5, 0x1, of more digits than classes have, or of others."""
    return _LIKE_NUMBER.fullmatch(text[:1000]) is not None or (text != "" and all(map(str.isnumeric, text[:1000])))


def shown_label(text: str) -> str:
    """A label in a message."""
    short = text if len(text) <= NUM_SHOWN else text[:NUM_SHOWN] + "..."
    return printable(short) if looks_like_number(text) else repr(printable(short))


def check_label(text: str, holder: str) -> str:
    """A text that can be a label: one line without control characters.

    Args:
        text: the text.
        holder: what holds it, for the message.

    Raises:
        ValueError: it is none; the message is the reason.
    """
    if not text or "\n" in text:
        raise ValueError(f"{printable(holder)} holds {printable(text[:NUM_SHOWN])!r}, not one label")
    if has_control_characters(text):
        raise ValueError(
            f"{printable(holder)} holds {printable(text[:NUM_SHOWN])!r}, with characters that cannot be shown"
        )
    return text


class ClassNumbers:
    """Numbers of labels where the names of all classes are known beforehand."""

    def __init__(self, classes: Sequence[str], where: str, are_positions: bool | None = None) -> None:
        """The classes in the order of their numbers.

        Args:
            classes: names of the classes.
            where: what says so, for messages.
            are_positions: whether a label that is a number is the position of its class; by default it is, unless
                numbers are the names of other classes.
        """
        self.classes = list(classes)
        self._where = where
        self._label_of = {same_spelling(name): label for label, name in enumerate(classes)}
        if are_positions is None:
            are_positions = all(not is_number(name) or int(name) == label for label, name in enumerate(classes))
        self._are_positions = are_positions

    def numbered(self, image: SourceImage, own_classes: Sequence[str] | None) -> SourceImage:
        """The image with the number of its class, or with the reason why it has none.

        Args:
            image: an image whose label is a text.
            own_classes: names that numbers in the image's tar stand for, where that is known.
        """
        if image.problem is not None:
            return image
        text = str(image.label)
        if own_classes is not None and not are_numbers(own_classes):
            is_known = is_number(text) and int(text) < len(own_classes)
            label = self._label_of.get(same_spelling(own_classes[int(text)])) if is_known else None
            text = f"{text} ({own_classes[int(text)]})" if is_known else text
        else:
            label = self._label_of.get(same_spelling(text))
            if label is None and self._are_positions and is_number(text) and int(text) < len(self.classes):
                label = int(text)
        if label is not None:
            return replace(image, label=label)
        problem = f"label {shown_label(text)} is not among the {len(self.classes)} classes of {self._where}"
        if is_number(text) and not self._are_positions:
            problem += ", which are names; nothing says what a number here means"
        return replace(image, label=-1, problem=problem)
