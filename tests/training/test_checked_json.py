import json
from typing import Any

import numpy as np
import pytest

from cbd_fast.errors import InputError
from cbd_fast.settings import Settings
from cbd_fast.training import checked_json
from cbd_fast.training.checked_json import read_object, read_typed, write_checked

REMEDY = "copy it again"


class Values(Settings):
    names: tuple[str, ...]
    more: dict[str, Any] = {}  # noqa: RUF012, pydantic copies it


VALUES = Values(names=("ant", "Käfer"), more={"number": 1.5, "exponent": 1e-07, "none": None})


@pytest.fixture
def path(tmp_path):
    write_checked(tmp_path / "values.json", VALUES)
    return tmp_path / "values.json"


def test_values_come_back_and_people_can_read_them(path):
    assert read_typed(path, Values, REMEDY) == VALUES
    values = json.loads(path.read_text())
    assert list(values) == ["sha256", "names", "more"]
    assert "Käfer" in path.read_text(encoding="utf-8")


def test_numbers_that_are_not_finite_become_null(path):
    write_checked(path, VALUES.model_copy(update={"more": {"a": float("nan"), "b": float("inf")}}))
    assert read_typed(path, Values, REMEDY).more == {"a": None, "b": None}


def test_every_damaged_byte_is_noticed(path):
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for position in range(len(whole)):
        for mask in {*(1 << bit for bit in range(8)), int(rng.integers(1, 256))}:
            damaged = bytearray(whole)
            damaged[position] ^= mask
            path.write_bytes(damaged)
            with pytest.raises(InputError, match=r"values\.json: .*; copy it again"):
                read_typed(path, Values, REMEDY)


def test_every_end_that_is_cut_off_is_noticed(path):
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError):
            read_typed(path, Values, REMEDY)


def test_a_file_without_a_sum_is_taken_as_it_is(path):
    path.write_text('{"names": ["ant"]}')
    assert read_typed(path, Values, REMEDY) == Values(names=("ant",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"names":' * 100_000, "nested too deeply"),
        (b'{"names": [], "more": ' + b'{"a":' * 900 + b"1" + b"}" * 901, "more|recursion"),
        (b'{"names": [], "more": {"a": ' + b"9" * 5000 + b"}}", "4300 digits"),
        (b'{"names": [], "more": {"a": NaN}}', "NaN is no number"),
        (b'{"names": [], "more": {"a": -Infinity}}', "Infinity is no number"),
        (b'{"names": [], "names": []}', "given twice"),
        (b'{"names": ["\\ud800"]}', "damaged"),
        (b'{"names": "ant"}', "names: Input should be a valid array"),
        (b'{"names": [1]}', r"names\.0: Input should be a valid string"),
        (b"{}", "names: Field required"),
        (b'{"names": [], "\\u001b[31m": 1}', r"\\x1b\[31m: Extra inputs"),
        (b'"names"', "no JSON object"),
        (b"", "damaged"),
    ],
)
def test_what_nobody_wrote_here_is_refused_in_one_line(path, content, message):
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as refused:
        read_typed(path, Values, REMEDY)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 1000


def test_large_files_and_none_are_refused(path, monkeypatch):
    monkeypatch.setattr(checked_json, "MAX_BYTES", 1 << 20)
    with open(path, "ab") as file:
        file.truncate(1 << 40)  # sparse
    with pytest.raises(InputError, match="more than 1 MB"):
        read_object(path, REMEDY)
    path.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        read_object(path, REMEDY)
    path.mkdir()
    with pytest.raises(InputError, match="cannot be read"):
        read_object(path, REMEDY)
