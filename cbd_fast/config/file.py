"""Reads a run's settings from a YAML file and ``key=value`` overrides; what is wrong is told by the setting's name."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from cbd_fast.config.help import describe_settings
from cbd_fast.errors import InputError
from cbd_fast.settings import Settings

AnySettings = TypeVar("AnySettings", bound=Settings)


def load_settings(kind: type[AnySettings], path: Path, overrides: Sequence[str] = ()) -> AnySettings:
    """Settings from a YAML file.

    Args:
        kind: their class.
        path: the file.
        overrides: ``section.name=value`` with the value in YAML.

    Raises:
        InputError: the file cannot be read, or a setting is unknown, of the wrong type or impossible.
    """
    try:
        settings = yaml.load(path.read_text(encoding="utf-8"), _SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not YAML ({error})") from error
    if not isinstance(settings, dict):
        raise InputError(f"{path}: holds no settings; see configs/ for examples")
    for override in overrides:
        _apply(settings, override)
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        known = [setting.name for setting in describe_settings(kind)]
        messages = [_message(details, known) for details in error.errors()]
        raise InputError(f"{path}: " + "; ".join(messages)) from error


class _SafeLoader(yaml.SafeLoader):
    """Safe YAML in which 1e-4 is a number and none is nothing, as everybody expects (YAML wants 1.0e-4 and null)."""


_SafeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)
_SafeLoader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(none|None)$"), ["n", "N"])


def _apply(settings: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"{override!r}: not a setting; write name=value, such as optimization.epochs=10")
    *sections, name = key.split(".")
    for section in sections:
        settings = settings.setdefault(section, {})
        if not isinstance(settings, dict):
            raise InputError(f"{override!r}: {section} is a setting, not a section")
    try:
        settings[name] = yaml.load(text, _SafeLoader)
    except yaml.YAMLError as error:
        raise InputError(f"{override!r}: the value is not YAML ({error})") from error


def _message(details: Any, known: Sequence[str]) -> str:
    """One of pydantic's errors in our words: the setting's name, what is wrong, and the value."""
    name = ".".join(str(part) for part in details["loc"])
    if details["type"] == "extra_forbidden":
        close = difflib.get_close_matches(name, known, n=1)
        return f"{name}: no such setting" + (f"; did you mean {close[0]}?" if close else "")
    if details["type"] == "missing":
        return f"{name}: must be set"
    rule = details["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    rule = rule.replace("valid tuple", "list")
    return (
        f"{name}: {rule}, not {details['input']!r}"
        if name and details["type"] != "value_error"
        else f"{name}: {rule}".removeprefix(": ")
    )
