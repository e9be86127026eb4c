"""Models and optimisers in files: safetensors and JSON, never a pickle; each checkpoint whole or not there."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cbd_fast.errors import InputError, first_line
from cbd_fast.files import atomic_file, atomic_folder, write_atomically

MODEL_NAME, OPTIMIZER_NAME, STATE_NAME, RESULT_NAME = (
    "model.safetensors",
    "optimizer.safetensors",
    "state.json",
    "result.json",
)
_REMEDY = "remove its folder to train from there again"
BEST_PATTERN = "best-*.safetensors"  # weights that may be selected in the end


def save_checkpoint(
    folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> None:
    """Writes ``folder/checkpoint-<step>`` and removes older ones.

    Args:
        folder: the model's folder in the run.
        step: how many steps are done.
        model: the model itself, not wrapped.
        optimizer: holds the model's parameters, in their order.
        state: what else the run needs to go on, for JSON.
    """
    path = folder / f"checkpoint-{step:08d}"
    older = checkpoints(folder)
    if path in older:
        return
    with atomic_folder(path) as temporary:
        save_file(_contiguous(model.state_dict()), temporary / MODEL_NAME)
        save_file(_momenta(model, optimizer), temporary / OPTIMIZER_NAME)
        (temporary / STATE_NAME).write_text(json.dumps(state | {"step": step}))
    for old in older:
        shutil.rmtree(old)


def load_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
    """Puts the last checkpoint into model and optimiser and returns its state; None if there is none."""
    whole = checkpoints(folder)
    if not whole:
        return None
    load_weights(whole[-1] / MODEL_NAME, model)
    momenta = _read_tensors(whole[-1] / OPTIMIZER_NAME, "the momenta of this model")
    parameters = dict(model.named_parameters())
    if momenta and momenta.keys() != parameters.keys():  # none before the first update, which fp16 may pass over
        raise InputError(f"{whole[-1] / OPTIMIZER_NAME}: not the momenta of this model; {_REMEDY}")
    for name, momentum in momenta.items():
        # in the parameter's memory layout, or every later step would be slower
        buffer = torch.empty_like(parameters[name]).copy_(momentum)
        optimizer.state[parameters[name]]["momentum_buffer"] = buffer
    return read_state(folder)


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a model, oldest first."""
    return sorted(path for path in folder.glob("checkpoint-*") if path.suffix == "")


def read_state(folder: Path) -> dict[str, Any] | None:
    """State of the last checkpoint, without its tensors; None if there is none."""
    whole = checkpoints(folder)
    return _read_json(whole[-1] / STATE_NAME) if whole else None


def save_finished(folder: Path, model: nn.Module, result: dict[str, Any]) -> None:
    """Writes a finished model's weights, then its result, which marks it as finished; removes what was on the way."""
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(folder / MODEL_NAME, model)
    write_atomically(folder / RESULT_NAME, json.dumps(result, indent=1) + "\n")
    for path in checkpoints(folder):
        shutil.rmtree(path)
    for path in folder.glob(BEST_PATTERN):
        path.unlink()


def save_weights(path: Path, model: nn.Module) -> None:
    """Writes a model's weights, whole or not at all."""
    with atomic_file(path) as temporary:
        save_file(_contiguous(model.state_dict()), temporary)


def read_result(folder: Path) -> dict[str, Any] | None:
    """Result of a finished model; None if it is not finished."""
    path = folder / RESULT_NAME
    return _read_json(path) if path.is_file() else None


def load_weights(path: Path, model: nn.Module, remedy: str = _REMEDY) -> None:
    """Puts the weights of a file into a model.

    Args:
        path: the file.
        model: a model of the same architecture, not wrapped.
        remedy: what a person can do where the file cannot be used.

    Raises:
        InputError: the file is missing, damaged, or of another model.
    """
    tensors = _read_tensors(path, "the weights of this model", remedy)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(f"{path}: not the weights of this model ({first_line(error)}); {remedy}") from error


def _read_tensors(path: Path, what: str, remedy: str = _REMEDY) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except OSError as error:
        raise InputError(f"{path}: not {what} ({error}); {remedy}") from error
    except Exception as error:  # safetensors has an exception of its own that is not public
        raise InputError(f"{path}: damaged ({error}); {remedy}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
        if not isinstance(value, dict):
            raise ValueError("no JSON object")
        return value
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: damaged ({error}); {_REMEDY}") from error


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _momenta(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    momenta = {
        name: optimizer.state[parameter].get("momentum_buffer")
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
    }
    return _contiguous({name: momentum for name, momentum in momenta.items() if momentum is not None})
