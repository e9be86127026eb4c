"""Checkpoints on the disk: each whole or not there, and only what is ours is ever removed."""

import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cbd_fast.errors import InputError
from cbd_fast.files import PARTIAL_SUFFIX, atomic_file, atomic_folder, publish
from cbd_fast.training.checked_json import read_object, read_typed, write_checked
from cbd_fast.training.saved_state import State
from cbd_fast.training.tensor_files import REMEDY, FileRecord, check_file, read_tensors, record_of, save_tensors

MODEL_NAME, OPTIMIZER_NAME, STATE_NAME, RESULT_NAME, CARD_NAME = (
    "model.safetensors",
    "optimizer.safetensors",
    "state.json",
    "result.json",
    "config.json",
)
CHECKPOINT_NAME, BEST_NAME = "checkpoint-{:08d}", "best-{:08d}.safetensors"  # of a step
CHECKPOINT_PATTERN, BEST_PATTERN = re.compile(r"checkpoint-([0-9]{8})"), re.compile(r"best-([0-9]{8})\.safetensors")
_PARTS = (MODEL_NAME, OPTIMIZER_NAME, STATE_NAME)


class Loaded(NamedTuple):
    """What a model goes on from.

    Attributes:
        state: of the newest checkpoint that can be used.
        damaged: of each newer one, what is wrong with it.
    """

    state: State
    damaged: tuple[str, ...]


def save_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: State, keep: int = 2
) -> None:
    """Writes ``folder/checkpoint-<step>`` and removes others, but for the newest.

    Args:
        folder: the model's folder in the run.
        model: the model itself, not wrapped.
        optimizer: holds the model's parameters, in their order.
        state: what else the run needs to go on; its ``files`` are filled in.
        keep: how many checkpoints there are in the end.

    Raises:
        RunError: a tensor is not finite, and nothing has changed.
    """
    path = folder / CHECKPOINT_NAME.format(state.step)
    if path.exists() and path not in checkpoints(folder):
        publish(path, _unused_beside(path))  # somebody else's, or what is left of one of ours: nobody knows
    if (files := _whole_files(path)) is not None:  # of the same step, and so of the same tensors
        write_checked(path / STATE_NAME, state.model_copy(update={"files": files}))
    else:
        if path.exists():  # it could not be used, or this step would not have been done again
            remove_checkpoints([path])
        with atomic_folder(path) as temporary:
            save_tensors(temporary / MODEL_NAME, model.state_dict())
            save_tensors(temporary / OPTIMIZER_NAME, momenta_of(model, optimizer))
            files = {name: record_of(temporary / name) for name in (MODEL_NAME, OPTIMIZER_NAME)}
            write_checked(temporary / STATE_NAME, state.model_copy(update={"files": files}))
    # what is of a later step could not be used, or this one would not have been done
    others = [other for other in checkpoints(folder) if other != path]
    older = [other for other in others if other < path]
    remove_checkpoints(set(others) - set(older[max(len(older) - keep + 1, 0) :]))
    remove_partial(folder)


def load_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Loaded | None:
    """Puts the newest checkpoint that is whole into model and optimiser; None if there is none at all.

    Raises:
        InputError: there are checkpoints, and none can be used; the model is as before.
    """
    damaged: list[str] = []
    for path in sorted([*checkpoints(folder), *_without_state(folder)], reverse=True):
        try:
            state = _read_state(path)
            weights, momenta = _read_checkpoint(path, state, model)
        except InputError as error:
            damaged.append(str(error))
            continue
        model.load_state_dict(weights)
        _restore_momenta(momenta, model, optimizer)
        return Loaded(state, tuple(damaged))
    if damaged:
        raise InputError(_all_damaged(damaged))
    return None


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a model that were written here, damaged ones too, oldest first.

    Folders of other names are not ours, nor are copies of a checkpoint under the name of another step.
    """
    found = [path for path in _matching(folder, CHECKPOINT_PATTERN) if path.is_dir() and not path.is_symlink()]
    return sorted(path for path in found if (path / STATE_NAME).is_file() and not _is_copy(path))


def read_state(folder: Path) -> State | None:
    """State of the newest checkpoint whose state can be read, without its tensors; None if there is none.

    Raises:
        InputError: there are checkpoints, and the state of none can be read.
    """
    damaged: list[str] = []
    for path in reversed(checkpoints(folder)):
        try:
            return _read_state(path)
        except InputError as error:
            damaged.append(str(error))
    if damaged:
        raise InputError(_all_damaged(damaged))
    return None


def remove_checkpoints(paths: Iterable[Path]) -> None:
    """Removes checkpoints; what somebody else has put into them stays, and so does its folder."""
    for path in paths:
        if {part.name for part in path.iterdir()} <= {*_PARTS, STATE_NAME + PARTIAL_SUFFIX}:
            doomed = path.with_name(path.name + PARTIAL_SUFFIX)  # so that a kill leaves no half of a checkpoint
            shutil.rmtree(doomed, ignore_errors=True)
            publish(path, doomed)
            shutil.rmtree(doomed)
        else:
            for name in _PARTS:  # the state, by which it is known, last
                (path / name).unlink(missing_ok=True)


def remove_partial(folder: Path, names: Iterable[str] = ()) -> None:
    """Removes what a kill has cut off while it was written or removed: checkpoints, best weights, files of these names.

    Nobody may be writing there.
    """
    for path in folder.glob(f"*{PARTIAL_SUFFIX}"):
        name = path.name.removesuffix(PARTIAL_SUFFIX)
        if name in names or CHECKPOINT_PATTERN.fullmatch(name) or BEST_PATTERN.fullmatch(name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def best_files(folder: Path) -> list[Path]:
    """The files of weights that were best once, in a model's folder."""
    return [path for path in _matching(folder, BEST_PATTERN) if path.is_file()]


def best_steps(folder: Path) -> set[int]:
    """Steps of the best weights that the checkpoints of a model know."""
    states = []
    for path in checkpoints(folder):
        with suppress(InputError):
            states.append(_read_state(path))
    return {state.best.step for state in states if state.best}


def save_weights(path: Path, model: nn.Module) -> None:
    """Writes a model's weights, whole or not at all.

    Raises:
        RunError: one of them is not finite; what was there stays.
    """
    with atomic_file(path) as temporary:
        save_tensors(temporary, model.state_dict())


def momenta_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Momentum buffers by the names of their parameters; empty before the first update."""
    momenta = {
        name: optimizer.state[parameter].get("momentum_buffer")
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
    }
    return {name: momentum for name, momentum in momenta.items() if momentum is not None}


def _read_state(path: Path) -> State:
    return read_typed(path / STATE_NAME, State, REMEDY)


def _without_state(folder: Path) -> list[Path]:
    """What may be left of checkpoints: no use, and not known to be ours, but a person should hear of it."""
    found = [path for path in _matching(folder, CHECKPOINT_PATTERN) if not (path / STATE_NAME).exists()]
    return [path for path in found if (path / MODEL_NAME).exists() or (path / OPTIMIZER_NAME).exists()]


def _unused_beside(path: Path) -> Path:
    """A name for something that is in the way, which is neither a checkpoint's nor that of anything there is."""
    others = (path.with_name(f"{path.name}.moved-{number}") for number in range(1, 10**6))
    return next(other for other in others if not other.exists())


def _whole_files(path: Path) -> dict[str, FileRecord] | None:
    """What is known of the files of a checkpoint; None if it is not there, or damaged."""
    if not path.exists():
        return None
    try:
        files = _read_state(path).files
        for name in (MODEL_NAME, OPTIMIZER_NAME):
            check_file(path / name, files[name])
    except (InputError, KeyError):
        return None
    return files


def _read_checkpoint(path: Path, state: State, model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights and momenta of a checkpoint, on the CPU, after a look at the best weights that it knows."""
    if state.best and state.best.step and state.best_file:
        remedy = f"remove {path.parent} to train it again"
        check_file(path.parent / BEST_NAME.format(state.best.step), state.best_file, remedy)
    files, parameters = state.files, dict(model.named_parameters())
    model_path, optimizer_path = path / MODEL_NAME, path / OPTIMIZER_NAME
    weights = read_tensors(model_path, model.state_dict(), "the weights of this model", record=files.get(MODEL_NAME))
    # none before the first update, which fp16 may pass over
    record = files.get(OPTIMIZER_NAME)
    momenta = read_tensors(optimizer_path, parameters, "the momenta of this model", record=record, may_be_empty=True)
    return weights, momenta


def _restore_momenta(momenta: dict[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    parameters = dict(model.named_parameters())
    for name, momentum in momenta.items():
        # in the parameter's memory layout, or every later step would be slower
        buffer = torch.empty_like(parameters[name]).copy_(momentum)
        optimizer.state[parameters[name]]["momentum_buffer"] = buffer


def _all_damaged(reasons: list[str]) -> str:
    """Why no checkpoint of a model can be used, the newest first."""
    if len(reasons) == 1:
        return reasons[0]
    told = "; ".join(reason.removesuffix(f"; {REMEDY}") for reason in reasons)
    return f"{told}; no checkpoint is left that can be used: remove these folders to train from the start again"


def _is_copy(path: Path) -> bool:
    """Whether a checkpoint has the name of another step than its own; a damaged one counts as what its name says."""
    try:
        values = read_object(path / STATE_NAME, REMEDY)
    except InputError:
        return False
    return isinstance(step := values.get("step"), int) and CHECKPOINT_NAME.format(step) != path.name


def _matching(folder: Path, name: re.Pattern[str]) -> list[Path]:
    return [path for path in folder.iterdir() if name.fullmatch(path.name)] if folder.is_dir() else []
