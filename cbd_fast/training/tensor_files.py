"""Tensors in safetensors files, never a pickle: nothing is read before its size and shape are what they must be."""

from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import Field
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cbd_fast.errors import InputError, RunError, first_line, full_disk_error, printable
from cbd_fast.files import file_sha256
from cbd_fast.resources import available_bytes
from cbd_fast.settings import Settings

REMEDY = "remove its folder to train from there again"
MAX_HEADER_BYTES = 16 << 20  # ResNet-152 has 0.1 MB
NUM_NAMED = 3  # tensors in a message
_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


class FileRecord(Settings):
    """What is known of a file from when it was written.

    Attributes:
        num_bytes: its size.
        sha256: of its bytes.
    """

    num_bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


def record_of(path: Path) -> FileRecord:
    """Size and sha256 of a file."""
    return FileRecord(num_bytes=path.stat().st_size, sha256=file_sha256(path))


def check_file(path: Path, record: FileRecord, remedy: str = REMEDY, *, reads_all: bool = True) -> None:
    """Compares a file with what is known of it.

    Args:
        path: the file.
        record: what it was when it was written.
        remedy: what a person can do where it is another.
        reads_all: whether its bytes are compared too, not its size alone.

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        num_bytes = path.stat().st_size
        if num_bytes != record.num_bytes:
            raise InputError(f"{path}: damaged ({num_bytes:,} bytes, not {record.num_bytes:,}); {remedy}")
        if reads_all and file_sha256(path) != record.sha256:
            raise InputError(
                f"{path}: damaged (its bytes are not those that were written: its sha256 is another); {remedy}"
            )
    except OSError as error:
        raise InputError(f"{path}: missing or cannot be read ({error.strerror or error}); {remedy}") from error


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or infinity; waits for the device once."""
    floating = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    if not floating:
        return []
    are_finite = torch.stack([tensor.isfinite().all() for tensor in floating.values()]).tolist()
    return [name for name, is_finite in zip(floating, are_finite, strict=True) if not is_finite]


def named(names: list[str]) -> str:
    """The first few of some names, and how many more there are."""
    more = f" and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else ""
    return ", ".join(map(printable, names[:NUM_NAMED])) + more


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors as they are into a new file.

    Raises:
        RunError: one of them holds NaN or infinity; nothing is written.
        OSError: the disk is full, or cannot be written.
    """
    if names := not_finite(tensors):
        raise RunError(f"{path}: not written, as {named(names)} would not be finite")
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(contiguous, path)
    except Exception as error:  # safetensors has an exception of its own that is not public
        raise full_disk_error(error, path, sum(map(_num_bytes, contiguous.values()))) or error from error


def read_tensors(
    path: Path,
    expected: Mapping[str, Tensor],
    what: str,
    remedy: str = REMEDY,
    record: FileRecord | None = None,
    *,
    may_be_empty: bool = False,
) -> dict[str, Tensor]:
    """Tensors of a file, on the CPU.

    Args:
        path: the file.
        expected: tensors of the names, shapes and types that it must hold; their values do not matter.
        what: what they are, for messages, such as ``the weights of this model``.
        remedy: what a person can do where the file cannot be used.
        record: what the file was when it was written, if that is known.
        may_be_empty: whether it may hold no tensor at all instead.

    Raises:
        InputError: the file is missing, damaged, of other tensors, or holds NaN or infinity.
    """
    found = _read_header(path, what, remedy)
    wanted = {name: (tuple(tensor.shape), _DTYPES.get(tensor.dtype)) for name, tensor in expected.items()}
    if may_be_empty and not found:
        wanted = {}
    if others := sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name)):
        raise InputError(f"{path}: not {what} ({_difference(others, found, wanted)}); {remedy}")
    if (num_bytes := path.stat().st_size) > available_bytes():
        raise InputError(f"{path}: its {num_bytes:,} bytes are more than there is memory for; {remedy}")
    if record:
        check_file(path, record, remedy)
    tensors = load_file(path)
    if names := not_finite(tensors):
        raise InputError(f"{path}: of no use ({named(names)}: not finite); {remedy}")
    return tensors


def load_weights(path: Path, model: nn.Module, remedy: str = REMEDY, record: FileRecord | None = None) -> None:
    """Puts the weights of a file into a model.

    Args:
        path: the file.
        model: a model of the same architecture, not wrapped.
        remedy: what a person can do where the file cannot be used.
        record: what the file was when it was written, if that is known.

    Raises:
        InputError: the file is missing, damaged, of another model, or holds NaN or infinity.
    """
    model.load_state_dict(read_tensors(path, model.state_dict(), "the weights of this model", remedy, record))


def read_shapes(path: Path, remedy: str = REMEDY) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a file, by name; none of them is read.

    Raises:
        InputError: the file is missing or damaged.
    """
    return {name: shape for name, (shape, _) in _read_header(path, "weights", remedy).items()}


def _read_header(path: Path, what: str, remedy: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shapes and types by name; that they go with the size of the file is checked by safetensors."""
    if not path.is_file():
        raise InputError(f"{path}: not {what} (no such file); {remedy}")
    try:
        with open(path, "rb") as opened:  # its first eight bytes say how large the header is, which is read as a whole
            num_bytes = int.from_bytes(opened.read(8), "little")
        if num_bytes > min(MAX_HEADER_BYTES, path.stat().st_size):
            raise ValueError(f"a header of {num_bytes:,} bytes")
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
            return {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    except Exception as error:  # safetensors has an exception of its own that is not public
        raise InputError(f"{path}: damaged ({printable(first_line(error))[:300]}); {remedy}") from error


def _difference(others: list[str], found: Mapping[str, object], wanted: Mapping[str, object]) -> str:
    missing = [name for name in others if name not in found]
    unknown = [name for name in others if name not in wanted]
    if missing or unknown:
        parts = {"missing": missing, "not known": unknown}
        return "; ".join(f"{named(names)}: {problem}" for problem, names in parts.items() if names)
    name = others[0]
    return f"{printable(name)} is {found[name]}, not {wanted[name]}"


def _num_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
