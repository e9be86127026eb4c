"""Reads a run's settings from a YAML file and ``key=value`` overrides; what is wrong is told by the setting's name."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from cbd_fast.config.help import describe_settings
from cbd_fast.config.yaml_file import parse_yaml, read_yaml
from cbd_fast.errors import InputError
from cbd_fast.settings import Settings

AnySettings = TypeVar("AnySettings", bound=Settings)

# What other trainers call the same
OTHER_NAMES = {
    "lr": "optimization.base_learning_rate",
    "learning_rate": "optimization.base_learning_rate",
    "base_lr": "optimization.base_learning_rate",
    "batch": "optimization.global_batch",
    "batch_size": "optimization.global_batch",
    "wd": "optimization.weight_decay",
    "max_steps": "optimization.steps",
    "num_epochs": "optimization.epochs",
    "gradient_accumulation_steps": "optimization.accumulation",
    "arch": "model.backbone",
    "img_size": "data.image_size",
    "dataset": "data.shards",
    "amp": "mixed_precision",
    "precision": "mixed_precision",
    "out": "output",
    "output_dir": "output",
    "workers": "runtime.num_threads",
    "num_workers": "runtime.num_threads",
}


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
        settings = read_yaml(path)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    except ValueError as error:
        raise InputError(f"{path}: not YAML that settings can be read from ({error})") from error
    if not isinstance(settings, dict):
        raise InputError(f"{path}: holds no settings; see configs/ for examples")
    keys = [override.partition("=")[0] for override in overrides]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise InputError(f"{twice}: is given twice on the command line; remove one")
    for override in overrides:
        _apply(settings, override)
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        known = [setting.name for setting in describe_settings(kind)]
        messages = [_message(details, known) for details in error.errors()]
        raise InputError(f"{path}: " + "; ".join(messages)) from error


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
        settings[name] = parse_yaml(text)
    except ValueError as error:
        raise InputError(f"{override!r}: the value is not YAML ({error})") from error


def _message(details: Any, known: Sequence[str]) -> str:
    """One of pydantic's errors in our words: the setting's name, what is wrong, and the value."""
    name = ".".join(str(part) for part in details["loc"])
    if details["type"] == "extra_forbidden":
        meant = _meant(name, known)
        return f"{name}: no such setting" + (f"; did you mean {' or '.join(meant)}?" if meant else "")
    if details["type"] == "missing":
        return f"{name}: must be set"
    rule = details["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    rule = rule.replace("valid tuple", "list")
    return (
        f"{name}: {rule}, not {details['input']!r}"
        if name and details["type"] != "value_error"
        else f"{name}: {rule}".removeprefix(": ")
    )


def _meant(name: str, known: Sequence[str]) -> list[str]:
    """The settings that somebody may have meant: of that last part, of another trainer's name, or nearly the same."""
    *sections, last = name.lower().replace("-", "_").split(".")
    same_end = [setting for setting in known if setting.split(".")[-1] == last]
    if same_end:
        return difflib.get_close_matches(name, same_end, n=1, cutoff=0) if sections else same_end
    if last in OTHER_NAMES:
        return [OTHER_NAMES[last]]
    if close := difflib.get_close_matches(name, known, n=1):
        return close
    ends = {setting.split(".")[-1]: setting for setting in known}
    return [ends[end] for end in difflib.get_close_matches(last, ends, n=1, cutoff=0.75)]
