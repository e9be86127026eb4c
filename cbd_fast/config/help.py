"""Settings in words: what each is called, what it takes, its default and its meaning."""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeGuard, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cbd_fast.config.names import NameIn

ONE_OF = "one of: "
ITEM = "[]"  # after the name of a list: its entries
WORDS = {bool: "yes/no", int: "whole number", float: "number", str: "text", NoneType: "none"}
PLURALS = {"whole number": "whole numbers", "number": "numbers", "text": "words"}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A setting in words; the name is dotted, as an override has it."""

    name: str
    kind: str
    default: str
    meaning: str


@dataclass(frozen=True, kw_only=True)
class Section:
    """Settings that stand together; the name of the outermost section is empty."""

    name: str
    meaning: str
    settings: tuple[Setting, ...]


def describe_sections(settings: type[BaseModel], name: str = "") -> Iterator[Section]:
    """A section, then those inside it; the entries of a list of sections are one too, named ``list[]``."""
    described: list[Setting] = []
    inside: list[tuple[type[BaseModel], str]] = []
    for field, info in settings.model_fields.items():
        full_name = f"{name}.{field}" if name else field
        if _is_section(info.annotation):
            inside.append((info.annotation, full_name))
            continue
        kind = in_words(info.annotation, info.metadata)
        described.append(Setting(name=full_name, kind=kind, default=_default(info), meaning=info.description or ""))
        inside += [(item, full_name + ITEM) for item in get_args(info.annotation) if _is_section(item)]
    meaning = (settings.__doc__ or "").splitlines()[0].rstrip(".")
    if meaning[1:2].islower():  # else it begins with an abbreviation
        meaning = meaning[0].lower() + meaning[1:]
    if name.endswith(ITEM):
        meaning += ", written as {" + ", ".join(f"{field}: ..." for field in settings.model_fields) + "}"
    yield Section(name=name, meaning=meaning, settings=tuple(described))
    for section, section_name in inside:
        yield from describe_sections(section, section_name)


def describe_settings(settings: type[BaseModel]) -> Iterator[Setting]:
    """Every setting, those inside lists included."""
    for section in describe_sections(settings):
        yield from section.settings


def settings_text(settings: type[BaseModel], width: int) -> str:
    """All settings by section, as lines of at most ``width`` characters (but for a word that is longer)."""
    lines = []
    for section in describe_sections(settings):
        title = f"{section.name}: {section.meaning}" if section.name else f"settings: {section.meaning}"
        lines += ["", *textwrap.wrap(title, width), ""]
        for setting in section.settings:
            head = f"{setting.name}: {setting.kind} ({setting.default})"
            lines += _wrapped(head, width, first="  ", then="          ")
            lines += _wrapped(setting.meaning, width, first="      ", then="      ")
    return "\n".join(lines[1:]) + "\n"


def in_words(annotation: Any, rules: Sequence[Any] = ()) -> str:
    """What a setting takes, such as ``number or none`` or ``one of: a, b``."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if names := next((rule.registry for rule in rules if isinstance(rule, NameIn)), None):
        return ONE_OF + ", ".join(names)
    if origin is Annotated:
        return in_words(arguments[0], arguments[1:])
    if origin is Literal:
        return ONE_OF + ", ".join(map(str, arguments))
    if origin is dict:
        return f"{{name: {in_words(arguments[1])}}}"
    if origin in (Union, UnionType):
        return " or ".join(in_words(argument) for argument in arguments)
    if origin in (tuple, list):
        item = "settings" if _is_section(arguments[0]) else in_words(arguments[0])
        if item.startswith(ONE_OF):
            return f"list of {item.removeprefix(ONE_OF)}"
        number = "" if origin is list or Ellipsis in arguments else f"{len(arguments)} "
        return f"list of {number}{PLURALS.get(item, item)}"
    return WORDS.get(annotation, getattr(annotation, "__name__", str(annotation)))


def value_in_words(value: Any) -> str:
    """A value as it can be typed."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, BaseModel):
        return "{" + ", ".join(f"{name}: {value_in_words(inside)}" for name, inside in value) + "}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {value_in_words(inside)}" for name, inside in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(value_in_words, value)) + "]"
    return str(value)


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "must be set"
    return f"default {value_in_words(info.get_default(call_default_factory=True))}"


def _is_section(annotation: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _wrapped(text: str, width: int, *, first: str, then: str) -> list[str]:
    # names such as teachers[].seed and paths stay whole
    return textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=then, break_on_hyphens=False, break_long_words=False
    )
