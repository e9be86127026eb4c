import json
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from cbd_fast.errors import InputError, RunError
from cbd_fast.training import tensor_files
from cbd_fast.training.tensor_files import check_file, load_weights, not_finite, read_tensors, record_of, save_tensors


@pytest.fixture
def path(tmp_path):
    save_tensors(tmp_path / "a.safetensors", TENSORS)
    return tmp_path / "a.safetensors"


TENSORS = {"weight": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(7)}


def read(path, **options):
    return read_tensors(path, TENSORS, "the weights", "copy it again", **options)


def test_tensors_come_back(path):
    found = read(path, record=record_of(path))
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


def test_every_damaged_byte_is_noticed(path):
    whole, record = path.read_bytes(), record_of(path)
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"a\.safetensors: .*; copy it again"):
            read(path, record=record)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_not_finite_is_neither_written_nor_read(tmp_path, value, dtype):
    tensors = {"fine": torch.ones(2, dtype=dtype), "mean": torch.tensor([1, value], dtype=dtype), "n": torch.tensor(3)}
    assert not_finite(tensors) == ["mean"]
    path = tmp_path / "a.safetensors"
    with pytest.raises(RunError, match="not written, as mean would not be finite"):
        save_tensors(path, tensors)
    assert not path.exists()
    save_file(tensors, path)
    with pytest.raises(InputError, match=r"of no use \(mean: not finite\); copy"):
        read_tensors(path, tensors, "the weights", "copy it again")
    with pytest.raises(InputError, match="not finite"):
        load_weights(path, torch.nn.ParameterDict({name: torch.nn.Parameter(t, False) for name, t in tensors.items()}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": torch.zeros(3, 2)}, r"weight is \(\(3, 2\), 'F32'\), not \(\(2, 3\), 'F32'\)"),
        ({"weight": torch.zeros(2, 3, dtype=torch.float64)}, ".*F64"),
        ({"weight": torch.zeros(2, 3, dtype=torch.float8_e4m3fn)}, ".*F8"),
        ({"other": torch.zeros(1)}, "other: not known"),
        ({"weight": None}, "weight: missing"),
    ],
)
def test_other_tensors_are_refused(path, changes, message):
    save_file({name: tensor for name, tensor in (TENSORS | changes).items() if tensor is not None}, path)
    with pytest.raises(InputError, match=rf"not the weights \({message}"):
        read(path)


def header(**tensors) -> bytes:
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 8 << 30) + b"{}",
        struct.pack("<Q", 2**64 - 1) + b"{}",
        header(weight={"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}),
        header(weight={"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 24]}) + bytes(24),
        header(weight={"dtype": "F4096", "shape": [1], "data_offsets": [0, 4]}) + bytes(4),
        header(weight={"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}) + bytes(4),
        header(weight={"dtype": "F32", "shape": [2, 3], "data_offsets": [24, 0]}) + bytes(24),
        struct.pack("<Q", 200_000) + b"[" * 200_000,
        b"",
        b"abc",
    ],
)
def test_forged_headers_take_no_memory(path, content):
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.safetensors: (damaged|not the weights)"):
        read(path)


def test_what_is_more_than_memory_is_not_read(path, monkeypatch):
    monkeypatch.setattr(tensor_files, "available_bytes", lambda: 10)
    with pytest.raises(InputError, match="more than there is memory for"):
        read(path)


def test_an_empty_file_of_tensors_may_be_allowed(path):
    save_tensors(path, {})
    assert read(path, may_be_empty=True) == {}
    with pytest.raises(InputError, match="missing"):
        read(path)


def test_files_are_compared_by_size_and_bytes(path):
    record = record_of(path)
    check_file(path, record)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"x")
    check_file(path, record, reads_all=False)
    with pytest.raises(InputError, match="its sha256 is another"):
        check_file(path, record)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"damaged \([0-9]+ bytes, not [0-9]+\)"):
        check_file(path, record, reads_all=False)
    path.unlink()
    with pytest.raises(InputError, match="missing or cannot be read"):
        check_file(path, record)


def test_files_hold_what_safetensors_reads(path):
    assert {name: tensor.tolist() for name, tensor in load_file(path).items()} == {
        name: tensor.tolist() for name, tensor in TENSORS.items()
    }
