import contextlib
import math
import time

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cbd_fast.config.yaml_file import dump_yaml, parse_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("-3", -3),
        ("1:30", "1:30"),
        ("190:20:30.15", "190:20:30.15"),
        ("1_000", "1_000"),
        ("0b1", "0b1"),
        ("2026-01-01", "2026-01-01"),
        ("2001-12-14t21:59:43.10-05:00", "2001-12-14t21:59:43.10-05:00"),
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        (".5", 0.5),
        ("5.", 5.0),
        ("-.inf", -math.inf),
        (".INF", math.inf),
        ("yes", True),
        ("No", False),
        ("on", "on"),
        ("y", "y"),
        ("=", "="),
        ("<<", "<<"),
        ("none", None),
        ("~", None),
        ("", None),
        ("[a: 1, {b: ~}]", [{"a": 1}, {"b": None}]),
        ("{a: &x [1], b: *x}", {"a": [1], "b": [1]}),
    ],
)
def test_values(text, value):
    parsed = parse_yaml(text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_not_a_number():
    assert math.isnan(parse_yaml(".nan"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "'a' is set twice, in line 1 and again in line 3"),
        ("s: {a: 1, a: 2}", "'a' is set twice"),
        ("s: [{a: 1, 'a': 2}]", "'a' is set twice"),
        ("1: a\n1.0: b", "1.0 is set twice"),
        ("{[1]: a}", "a key must be a word, not list"),
        ("{? {a: 1} : a}", "a key must be a word, not dict"),
        ("a: [", "expected"),
        ("a: 1\n---\nb: 2", "expected a single document"),
        ("!!python/object/apply:os.system ['true']", "the tag .* in line 1; settings have none"),
        ("!!python/name:os.system", "the tag .* in line 1; settings have none"),
        ("!!timestamp x", "the tag"),
        ("a: !!int x", "the tag"),
        ("a: !mine {}", "the tag"),
        ("a: " + "9" * 5000, "a number of 5000 digits, in line 1"),
        ("[" * 100_000, "nested more than 50 levels deep"),
        ("- " * 1000 + "a", "nested more than 50 levels deep"),
        ("&a [*a]", "an alias stands inside of what it repeats"),
        ("[" + "a, " * 20_000 + "]", "more than 10,000 values"),
        ("a" * 1_000_001, "1,000,001 characters, and settings have at most"),
        ("a: \x07", "special characters are not allowed"),
    ],
)
def test_what_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_yaml(text)


def test_an_alias_bomb_costs_nothing():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 30)]
    began = time.perf_counter()
    with pytest.raises(ValueError, match="more than 10,000 values, with those that aliases repeat"):
        parse_yaml("\n".join(lines))
    assert time.perf_counter() - began < 2


SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text()
WORDS = st.sampled_from(["0o10", "010", "1e5", "1:30", "none", "no", "on", "~", "2026-01-01", "1_0", ".inf", "=", "<<"])


@given(st.dictionaries(st.text() | WORDS, SCALARS | WORDS | st.lists(SCALARS | WORDS, max_size=3), max_size=4))
def test_what_is_written_is_read_as_the_same(value):
    text = dump_yaml(value)
    assert parse_yaml(text) == value
    assert yaml.safe_load(text) == value  # and by any other reader


@given(st.text(alphabet="[]{}:,-&*!?|>'\"%@`~ \n\tab01.#", max_size=60))
def test_any_text_is_read_or_refused(text):
    with contextlib.suppress(ValueError):
        parse_yaml(text)
