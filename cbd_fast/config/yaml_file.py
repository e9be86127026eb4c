"""YAML as people mean it, from files that may come from strangers: no tags, no surprises, no bombs.

Numbers are those of YAML 1.2 (https://yaml.org/spec/1.2.2/, 10.3.2): 010 is ten, 1:30 and 2026-01-01 are words. Beside
true and false there are yes and no, and none is nothing.
"""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any, ClassVar

import yaml

MAX_CHARACTERS = 1_000_000
MAX_NODES = 10_000  # settings, with those that aliases repeat
MAX_DEPTH = 50


def read_yaml(path: Path) -> Any:
    """What a YAML file holds.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no text, or none that ``parse_yaml`` takes.
    """
    with open(path, encoding="utf-8") as file:
        return parse_yaml(file.read(MAX_CHARACTERS + 1))


def parse_yaml(text: str) -> Any:
    """What a YAML text holds: mappings, lists, numbers, words, booleans and None.

    Raises:
        ValueError: it is no YAML, a key is there twice, or it is too large or too deep for settings.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"{len(text):,} characters, and settings have at most {MAX_CHARACTERS:,}")
    try:
        _check_events(text)
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _count_nodes(node, {}, 1)
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def dump_yaml(value: Any) -> str:
    """A value as YAML that is read as the same, here and by readers of YAML 1.1."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False)


class _Loader(yaml.SafeLoader):
    """Safe YAML with the rules of this module."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]  # none of YAML 1.1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """A mapping whose keys are all different."""
        first_lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, str | int | float | bool | None):
                raise yaml.MarkedYAMLError(problem=f"a key must be a word, not {type(key).__name__}, in line {line}")
            if key in first_lines:
                raise yaml.MarkedYAMLError(
                    problem=f"{key!r} is set twice, in line {first_lines[key]} and again in line {line}; remove one"
                )
            first_lines[key] = line
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = self.construct_scalar(node)
        if len(text) > 40:  # Python refuses thousands of digits with words of its own; no setting has these
            raise yaml.MarkedYAMLError(problem=f"a number of {len(text)} digits, in line {node.start_mark.line + 1}")
        return int(text, 0 if text.startswith(("0o", "0x")) else 10)

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        return float(self.construct_scalar(node).lower().replace(".inf", "inf").replace(".nan", "nan"))


class _Dumper(yaml.SafeDumper):
    """Quotes words that any of the two would read as something else."""


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)
for _name, _pattern, _first in (
    ("null", r"~|null|Null|NULL|none|None|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE|yes|Yes|YES|no|No|NO", list("tTfFyYnN")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    for _kind in (_Loader, _Dumper):
        _kind.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), _first)


def _check_events(text: str) -> None:
    """Refuses tags, and what is nested so deep that the parser, which calls itself for each level, does not return."""
    depth = 0
    for event in yaml.parse(text, _Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"nested more than {MAX_DEPTH} levels deep")
        if tag := getattr(event, "tag", None):
            assert event.start_mark is not None
            line = event.start_mark.line + 1
            raise yaml.MarkedYAMLError(problem=f"the tag {tag!r} in line {line}; settings have none, remove it")


def _count_nodes(node: yaml.Node, counted: dict[int, int | None], depth: int) -> int:
    """Nodes of a tree, those of an alias as often as they are there: a few lines can mean billions."""
    known = counted.get(id(node), 0)
    if known is None or depth > MAX_DEPTH:
        raise yaml.MarkedYAMLError(problem="an alias stands inside of what it repeats, or too deep")
    if known:
        return known
    counted[id(node)] = None
    inside = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
    num_nodes = 1 + sum(_count_nodes(part, counted, depth + 1) for part in inside if isinstance(part, yaml.Node))
    if num_nodes > MAX_NODES:
        raise yaml.MarkedYAMLError(problem=f"more than {MAX_NODES:,} values, with those that aliases repeat")
    counted[id(node)] = num_nodes
    return num_nodes
