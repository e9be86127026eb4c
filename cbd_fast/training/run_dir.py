"""What a run leaves behind for people and programs: settings, metrics, results."""

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from cbd_fast.config.schema import Config
from cbd_fast.config.yaml_file import read_yaml
from cbd_fast.errors import InputError, printable
from cbd_fast.files import atomic_file, fsync_path, write_atomically
from cbd_fast.loading.augment import Plan
from cbd_fast.shards.long_tail import frequency_groups
from cbd_fast.training.checkpoint import checkpoints
from cbd_fast.training.finished import is_result
from cbd_fast.training.metrics import per_class_accuracy

CONFIG_NAME, METRICS_NAME = "config.yaml", "metrics.jsonl"
SUMMARY_NAME, PER_CLASS_NAME = "summary.json", "per_class.csv"


class RunDir:
    """Writes a run's folder; on every process but the main one it writes nothing but that process's own files.

    Attributes:
        folder: the run's folder.
        bad_images: reasons by the name of each image that this process could not use.
        notes: what a person should know of what the folder held before.
    """

    def __init__(self, folder: Path, *, is_main: bool, rank: int = 0) -> None:
        self.folder, self._is_main, self._rank = folder, is_main, rank
        self.bad_images: dict[str, str] = {}
        self.notes: list[str] = []
        self._listed: set[Any] = set()  # bad images that the file names
        self._listeners: list[Callable[[Mapping[str, Any]], None]] = []

    def start(self, config: Config) -> None:
        """Makes the folder and writes the resolved settings, over those of the same run that may be there."""
        if self._is_main:
            path = self.folder / CONFIG_NAME
            try:
                Config.from_file(path)
            except InputError as error:
                if path.exists():
                    self.notes.append(f"damaged, and written anew from the settings that were given: {error}")
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                write_atomically(path, config.to_yaml())
            except OSError as error:
                raise InputError(f"output: {self.folder} cannot be written ({error})") from error

    def rewind(self, model: str, step: int, evaluated: Mapping[str, int] | None = None) -> None:
        """Forgets what was logged of a model after ``step``: the run will do these steps again.

        That is in the files of all processes, of which there may have been more than now; where a kill has cut off
        a line, it goes too. Other processes may write again when the main one has returned.

        Args:
            model: its name.
            step: steps that are done.
            evaluated: by the name of a split the last step whose evaluation is not done again; of other splits all
                are. By default ``step`` of each.
        """
        if not self._is_main:
            return
        _keep_lines(self.folder / METRICS_NAME, lambda line: not _is_after(line, model, step, evaluated))
        for path in _of_processes(self.folder, "batches"):  # whose steps are numbered from 0
            _keep_lines(path, lambda line: not _is_after(line, model, step - 1))
        for path in _of_processes(self.folder, "bad_images"):
            _keep_lines(path, lambda line: line is not None)

    def add_listener(self, listener: Callable[[Mapping[str, Any]], None]) -> None:
        """Has every record that is logged from now on passed on to ``listener`` too."""
        self._listeners.append(listener)

    def log(self, record: Mapping[str, Any]) -> None:
        """Appends one object to metrics.jsonl."""
        if self._is_main:
            _append(self.folder / METRICS_NAME, record)
            for listener in self._listeners:
                listener(record)

    def sync(self) -> None:
        """Returns when all that was logged has reached the disk, so that no checkpoint knows more than the log."""
        own = [self._own_file(name) for name in ("batches", "bad_images")]
        for path in [self.folder / METRICS_NAME, *own] if self._is_main else own:
            if path.exists():
                fsync_path(path)

    def bad_image(self, name: str, reason: str) -> None:
        """Appends an image that cannot be used to this process's list, once, however often the run is gone on with."""
        if name in self.bad_images:
            return
        path = self._own_file("bad_images")
        if not self.bad_images:
            self._listed = {record.get("image") for line in _lines(path) if (record := _record(line)) is not None}
        self.bad_images[name] = reason
        if name in self._listed:
            return
        _append(path, {"image": name, "reason": reason})

    def log_batch(self, model: str, step: int, plan: Plan) -> None:
        """Appends what this process read in a step, for checking one run against another."""
        batch = {field.name: getattr(plan, field.name).tolist() for field in fields(plan)}
        _append(self._own_file("batches"), {"model": model, "step": step, **batch})

    def _own_file(self, name: str) -> Path:
        return self.folder / f"{name}.rank-{self._rank}.jsonl"

    def summarize(self, summary: Mapping[str, Any]) -> None:
        """Writes summary.json."""
        if self._is_main:
            write_atomically(self.folder / SUMMARY_NAME, json.dumps(summary, indent=1) + "\n")

    def write_per_class(
        self, classes: Sequence[str], train_counts: Sequence[int], counts: Mapping[str, np.ndarray]
    ) -> None:
        """Writes per_class.csv: one row per class, one column of top-1 accuracy in percent per model.

        Args:
            classes: names.
            train_counts: training images of each.
            counts: ``(3, num_classes)`` of each model, as ``Predictions.counts`` has them.
        """
        if not self._is_main:
            return
        groups = frequency_groups(np.array(train_counts))
        accuracies = {model: per_class_accuracy(counted) for model, counted in counts.items()}
        with (
            atomic_file(self.folder / PER_CLASS_NAME) as temporary,
            open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file,
        ):
            writer = csv.writer(file)
            writer.writerow(["label", "class", "train_images", "group", "test_images", *accuracies])
            for label, name in enumerate(classes):
                group = next(group for group, mask in groups.items() if mask[label])
                num_test = next((int(counted[0, label]) for counted in counts.values()), 0)
                row = ["" if np.isnan(values[label]) else f"{values[label]:.2f}" for values in accuracies.values()]
                writer.writerow([label, printable(name), train_counts[label], group, num_test, *row])


def looks_like_run(folder: Path) -> bool:
    """Whether a folder is that of a run, even where its ``config.yaml`` is damaged: it holds our log, or our models."""
    first = next(iter(_lines(folder / METRICS_NAME)), b"")
    is_logged = {"model", "step"} <= (_record(first) or {}).keys()
    models = [path for path in folder.iterdir() if re.fullmatch("student|teacher-[0-9]+", path.name)]
    return is_logged or any(checkpoints(path) or is_result(path) for path in models)


def is_old_run(path: Path) -> bool:
    """Whether a ``config.yaml`` is of version 0.1, whose settings had other names."""
    with suppress(OSError, ValueError):
        settings = read_yaml(path)
        return isinstance(settings, dict) and "select" in settings and "checkpoint_selection" not in settings
    return False


class NullRunDir(RunDir):
    """The folder of a run that writes nothing; its bad images are remembered all the same."""

    def __init__(self) -> None:
        super().__init__(Path(), is_main=False)

    def bad_image(self, name: str, reason: str) -> None:
        self.bad_images[name] = reason


def _of_processes(folder: Path, name: str) -> list[Path]:
    """The files of that name of all processes."""
    return [path for path in folder.iterdir() if re.fullmatch(rf"{name}\.rank-[0-9]+\.jsonl", path.name)]


def _keep_lines(path: Path, is_kept: Callable[[dict[str, Any] | None], bool]) -> None:
    """Removes lines of a file, if there are such, told by their records; None is a line that is none."""
    if all(is_kept(_record(line)) for line in _lines(path)):
        return
    with atomic_file(path) as temporary, open(temporary, "wb") as file:
        file.writelines(line for line in _lines(path) if is_kept(_record(line)))


def _append(path: Path, record: Mapping[str, Any]) -> None:
    """Appends a line to a file; on a full disk the error names the file."""
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _lines(path: Path) -> Iterator[bytes]:
    if path.is_file():
        with open(path, "rb") as file:
            yield from file


def _record(line: bytes) -> dict[str, Any] | None:
    with suppress(ValueError, RecursionError):
        record = json.loads(line)
        return record if line.endswith(b"\n") and isinstance(record, dict) else None
    return None


def _is_after(record: dict[str, Any] | None, model: str, step: int, evaluated: Mapping[str, int] | None = None) -> bool:
    if record is None:
        return True  # the end of a line that a kill cut off
    if evaluated is not None and "split" in record:
        step = min(step, evaluated.get(record["split"], -1))
    return record.get("model") == model and isinstance(record.get("step"), int) and record["step"] > step
