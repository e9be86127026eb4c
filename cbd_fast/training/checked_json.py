"""JSON files that know their own sha256, so that a single damaged byte is noticed, and whose values are typed.

The first value of such a file is the sha256 of all its other bytes. A file without one, as people and other programs
write it, is taken as it is.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from cbd_fast.errors import InputError, first_line, printable
from cbd_fast.files import write_atomically
from cbd_fast.settings import Settings

AnySettings = TypeVar("AnySettings", bound=Settings)

KEY = "sha256"
MAX_BYTES = 64 << 20  # 22,000 classes are 2 MB
MAX_SHOWN = 300  # characters of what is wrong with a file, some of which may be the file's own
_HEAD, _NUM_DIGITS = f'{{\n "{KEY}": "', 64


def checked_text(values: Settings) -> str:
    """The content of a file of ``values``, its sha256 first; numbers that are not finite become null."""
    rest = "\n" + values.model_dump_json(indent=1).removeprefix("{\n") + "\n"
    return f'{_HEAD}{_digest(rest.encode())}",{rest}'


def write_checked(path: Path, values: Settings) -> None:
    """Writes values and their sha256, whole or not at all."""
    write_atomically(path, checked_text(values))


def read_object(path: Path, remedy: str) -> dict[str, Any]:
    """The values of a file of an object, without its sha256, which they are compared with.

    Args:
        path: the file.
        remedy: what a person can do where the file cannot be used.

    Raises:
        InputError: as of ``read_value``, or it is no object.
    """
    values = read_value(path, remedy)
    if not isinstance(values, dict):
        raise InputError(f"{path}: damaged (no JSON object); {remedy}")
    return values


def read_value(path: Path, remedy: str) -> Any:
    """What a file holds: if it is an object, without its sha256, which it is compared with.

    Raises:
        InputError: the file cannot be read, is damaged, or holds what JSON does not have.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
        text = content.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({first_line(error)}); {remedy}") from error
    try:
        if len(content) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES >> 20} MB, which no such file has")
        value = json.loads(text, object_pairs_hook=_without_doubles, parse_constant=_refuse)
        given = value.pop(KEY, None) if isinstance(value, dict) else None
        start = len(_HEAD) + _NUM_DIGITS
        is_whole = content.startswith(_HEAD.encode()) and content[start : start + 2] == b'",'
        if given is not None and (not is_whole or given != _digest(content[start + 2 :])):
            raise ValueError(f"its bytes are not those that were written: its {KEY} is another")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: damaged ({_what_is_wrong(error)}); {remedy}") from error
    return value


def read_typed(path: Path, kind: type[AnySettings], remedy: str) -> AnySettings:
    """The values of a file as they were written.

    Args:
        path: the file.
        kind: what they are.
        remedy: what a person can do where the file cannot be used.

    Raises:
        InputError: as of ``read_object``, or the values are not of this kind, as those of another version.
    """
    values = read_object(path, remedy)
    try:
        return as_kind(path, values, kind, remedy)
    except InputError as error:
        identity = values.get("identity")
        if isinstance(identity, dict) and identity and "images" not in identity:
            raise InputError(
                f"{path}: was written by cbd_fast 0.1, whose models this version cannot use; choose another output, "
                "or remove its folder to train it again"
            ) from error
        raise


def as_kind(path: Path, values: dict[str, Any], kind: type[AnySettings], remedy: str) -> AnySettings:
    """What ``read_object`` has read from a file, as what it is to be.

    Raises:
        InputError: a value is missing, unknown or of another type.
    """
    try:
        return kind.model_validate_json(json.dumps(values))  # from JSON, whose lists may be tuples
    except (ValidationError, RecursionError) as error:
        what = f"damaged ({_what_is_wrong(error)}), or of another version of cbd_fast"
        raise InputError(f"{path}: {what}; {remedy}") from error


def _digest(rest: bytes) -> str:
    return hashlib.sha256(rest).hexdigest()


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a name is given twice")
    return values


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def _what_is_wrong(error: Exception) -> str:
    """One line, without terminal escapes and not longer than a person reads."""
    text = first_line(error)
    if isinstance(error, RecursionError):
        text = "nested too deeply"
    elif isinstance(error, ValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        text = ": ".join(filter(None, [where, first["msg"].removeprefix("Value error, ")]))
    shown = printable(text)
    return shown if len(shown) <= MAX_SHOWN else shown[:MAX_SHOWN] + "..."
