"""Finished models on the disk: all of a model is there, and whole, or it does not count as finished."""

from pathlib import Path

from cbd_fast.errors import InputError
from cbd_fast.training.checked_json import read_object, read_typed, write_checked
from cbd_fast.training.checkpoint import (
    CARD_NAME,
    MODEL_NAME,
    RESULT_NAME,
    best_files,
    checkpoints,
    remove_checkpoints,
    remove_partial,
)
from cbd_fast.training.saved_state import Result
from cbd_fast.training.tensor_files import check_file, record_of


def save_finished(folder: Path, result: Result) -> None:
    """Marks a model as finished, and removes what was on the way.

    Args:
        folder: the model's folder, which holds its weights and its card.
        result: what came out; its ``files`` are filled in.
    """
    files = {name: record_of(folder / name) for name in (MODEL_NAME, CARD_NAME)}
    write_checked(folder / RESULT_NAME, result.model_copy(update={"files": files}))
    remove_leftovers(folder)


def remove_leftovers(folder: Path) -> None:
    """Removes what a finished model does not need: checkpoints, best weights, and what a kill has cut off."""
    remove_checkpoints(checkpoints(folder))
    for path in best_files(folder):
        path.unlink()
    remove_partial(folder, (MODEL_NAME, CARD_NAME, RESULT_NAME))


def has_result(folder: Path) -> bool:
    """Whether a folder holds a result, the last thing that is written of a model."""
    return (folder / RESULT_NAME).is_file()


def is_result(folder: Path) -> bool:
    """Whether a folder holds a result that is one of ours, of any version.

    Raises:
        InputError: it is damaged.
    """
    return has_result(folder) and "identity" in read_object(folder / RESULT_NAME, f"move {folder} away")


def read_result(folder: Path) -> Result | None:
    """Result of a finished model; None if it is not finished.

    Raises:
        InputError: the result is damaged, or of another version.
    """
    if not has_result(folder):
        return None
    return read_typed(folder / RESULT_NAME, Result, f"remove {folder} to train it again")


def read_finished(folder: Path, *, reads_all: bool = False) -> Result | None:
    """Result of a finished model whose files are all there; None if it is not finished.

    Args:
        folder: the model's folder.
        reads_all: whether the bytes of the files are compared with what was written, not their sizes alone.

    Raises:
        InputError: the result is damaged, or a file of the model is missing, damaged or cut off.
    """
    if (result := read_result(folder)) is None:
        return None
    remedy = f"copy it there again, or remove {folder} to train it again"
    for name in (MODEL_NAME, CARD_NAME):
        if not (folder / name).is_file():
            raise InputError(f"{folder / name}: missing, though the model is finished; {remedy}")
    for name, record in result.files.items():
        if name in (MODEL_NAME, CARD_NAME):  # never what a stranger's file names
            check_file(folder / name, record, remedy, reads_all=reads_all)
    return result
