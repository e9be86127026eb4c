"""Mutations of bytes and of JSON: pure functions of a random generator."""

import json
import struct
from typing import Any

import numpy as np

ODD_INTEGERS = (
    0, 1, -1, 2, 127, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**62, 2**63 - 1, 2**63,
    2**64 - 1, 2**64, -(2**63), 10**30,
)  # fmt: skip
ODD_NUMBERS = (*ODD_INTEGERS, 0.5, -0.0, 1e308, 5e-324, float("nan"), float("inf"), float("-inf"), 10**400)
ODD_TEXTS = (
    "", " ", ".", "..", "/", "../x", "../../x/evil", "/etc/passwd", "a/b", "a\0b", "\x1b[2J\x1b]0;evil\x07", "a\nb",
    "\u202e", "\ud800", "é", "\ufeff", "~", "${HOME}", "%s%n", "-1", "1e9", "nan", "null", "true", "x" * 300,
    "x" * 5000, "9" * 5000, "!!python/name:os.system", "train", "test", "class", "float64", "|O", "model.safetensors",
)  # fmt: skip


def nested(depth: int) -> Any:
    """A list in a list in a list ..."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def odd_value(rng: np.random.Generator) -> Any:
    """A value that nobody expects."""
    kind = rng.integers(7)
    if kind < 3:
        return ODD_NUMBERS[rng.integers(len(ODD_NUMBERS))]
    if kind < 5:
        return ODD_TEXTS[rng.integers(len(ODD_TEXTS))]
    others = (
        None,
        True,
        False,
        [],
        {},
        [[]],
        {"": ""},
        nested(50),
        nested(500),
        [0] * 1000,
        {str(n): n for n in range(200)},
    )
    return others[rng.integers(len(others))]


def mutated_bytes(rng: np.random.Generator, data: bytes) -> bytes:
    """The bytes with one to four changes: flipped, cut, doubled, moved, overwritten with odd numbers, ..."""
    for _ in range(1 + rng.integers(4)):
        data = _mutate_once(rng, data)
    return data


def _mutate_once(rng: np.random.Generator, data: bytes) -> bytes:
    if not data:
        return rng.bytes(int(rng.integers(1, 64)))
    changed = bytearray(data)
    start = int(rng.integers(len(data)))
    length = int(min(len(data) - start, rng.integers(1, 1 + rng.choice([1, 8, 64, 1024]))))
    piece = changed[start : start + length]
    kind = rng.integers(9)
    if kind == 0:
        changed[start] ^= 1 << rng.integers(8)
    elif kind == 1:
        changed[start : start + length] = rng.bytes(length)
    elif kind == 2:
        del changed[start:]
    elif kind == 3:
        del changed[start : start + length]
    elif kind == 4:
        changed[start:start] = piece * int(rng.integers(1, 4))
    elif kind == 5:
        changed[start : start + length] = bytes(length)
    elif kind == 6:
        changed[start : start + length] = b"\xff" * length
    elif kind == 7:
        number = ODD_INTEGERS[rng.integers(len(ODD_INTEGERS))] & 2**64 - 1
        changed[start : start + 8] = struct.pack(("<Q", ">Q")[rng.integers(2)], number)
    else:
        other = int(rng.integers(len(data)))
        changed[other:other] = piece
    return bytes(changed)


def mutated_json(rng: np.random.Generator, value: Any) -> Any:
    """A copy of a JSON value with one to three nodes replaced, removed, exchanged or added."""
    value = json.loads(json.dumps(value))
    for _ in range(1 + rng.integers(3)):
        places = list(_places(value))
        if not places:
            return odd_value(rng)
        parent, key = places[rng.integers(len(places))]
        kind = rng.integers(6)
        if kind < 3:
            parent[key] = odd_value(rng)
        elif kind == 3:
            del parent[key]
        elif kind == 4:
            other, other_key = places[rng.integers(len(places))]
            parent[key], other[other_key] = json.loads(json.dumps([other[other_key], parent[key]]))
        elif isinstance(parent, dict):
            parent[str(odd_value(rng))[:6000]] = parent[key]
        else:
            parent.append(parent[key])
    return value


def _places(value: Any, depth: int = 0) -> Any:
    if depth < 30 and isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key], depth + 1)


def json_bytes(rng: np.random.Generator, value: Any) -> bytes:
    """A value as JSON, as odd as the standard library writes it; now and then in another encoding."""
    text = json.dumps(value, indent=(None, 1)[rng.integers(2)], ensure_ascii=bool(rng.integers(2)))
    encoding = ("utf-8", "utf-8", "utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1")[rng.integers(8)]
    return text.encode(encoding, "surrogatepass" if encoding != "latin-1" else "replace")
