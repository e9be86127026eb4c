from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field

from cbd_fast.config.help import describe_sections, describe_settings, in_words, settings_text, value_in_words
from cbd_fast.config.schema import Config
from cbd_fast.settings import flattened


class Item(BaseModel):
    """One of several."""

    seed: int = Field(1, description="of the item")


class Inner(BaseModel):
    """SGD or so.

    More about it.
    """

    rate: float | None = Field(None, description="how fast")
    items: tuple[Item, ...] = Field((Item(),), description="some")


class Outer(BaseModel):
    """The whole."""

    name: str = Field(description="what it is called")
    inner: Inner = Inner()
    kind: Literal["a", "b"] = Field("a", description="which")


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (bool, "yes/no"),
        (int, "whole number"),
        (str, "text"),
        (float | None, "number or none"),
        (Literal["a", "b"], "one of: a, b"),
        (Annotated[Literal["a", "b"], "more"], "one of: a, b"),
        (bool | Literal["auto"], "yes/no or one of: auto"),
        (tuple[str, ...], "list of words"),
        (tuple[float, float, float] | None, "list of 3 numbers or none"),
        (tuple[Item, ...], "list of settings"),
    ],
)
def test_what_a_setting_takes(annotation, words):
    assert in_words(annotation) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "none"),
        (True, "yes"),
        (False, "no"),
        (2.5e-4, "0.00025"),
        (100.0, "100"),
        ("auto", "auto"),
        ((), "[]"),
        ((Item(), Item(seed=2)), "[{seed: 1}, {seed: 2}]"),
    ],
)
def test_values_as_they_are_typed(value, words):
    assert value_in_words(value) == words


def test_sections():
    outer, inner, item = describe_sections(Outer)
    assert [(section.name, section.meaning) for section in (outer, inner, item)] == [
        ("", "the whole"),
        ("inner", "SGD or so"),
        ("inner.items[]", "one of several, written as {seed: ...}"),
    ]
    assert [(setting.name, setting.default) for setting in outer.settings] == [
        ("name", "must be set"),
        ("kind", "default a"),
    ]
    assert [setting.name for setting in describe_settings(Outer)] == [
        *("name", "kind", "inner.rate", "inner.items", "inner.items[].seed")
    ]


def test_every_setting_of_a_run_is_listed_in_plain_words():
    described = {setting.name: setting for setting in describe_settings(Config)}
    assert all(setting.meaning for setting in described.values())
    settings = {"output": "x", "data": {"shards": "s", "num_classes": 10}, "optimization": {"steps": 1}}
    in_a_config = {name for name, _ in flattened(Config.model_validate(settings).model_dump())}
    assert in_a_config <= described.keys()
    of_teachers = {f"stage_one.teachers[].{name}" for name in ("seed", "color_jitter", "path")}
    empty = {"stage_one.loss_options", "stage_two.loss_options"}
    assert of_teachers | empty == described.keys() - in_a_config
    for setting in described.values():
        assert not any(mark in setting.kind for mark in ("[", "|", "Literal", "typing", "tuple", "None"))


@pytest.mark.parametrize("width", [60, 80, 120])
def test_lines_fit(width):
    text = settings_text(Config, width)
    assert max(map(len, text.splitlines())) <= width
    assert text.count("\n") > 100
    assert "  stage_two.alpha: number (default 0.4)\n      weight of distillation; 1 - alpha" in text
