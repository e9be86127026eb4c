"""What a run leaves behind for people and programs: settings, metrics, results."""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cbd_fast.config.schema import Config
from cbd_fast.errors import InputError
from cbd_fast.files import atomic_file, fsync_path, write_atomically
from cbd_fast.loading.augment import Plan
from cbd_fast.shards.long_tail import frequency_groups
from cbd_fast.training.metrics import per_class_accuracy

CONFIG_NAME, METRICS_NAME = "config.yaml", "metrics.jsonl"
SUMMARY_NAME, PER_CLASS_NAME = "summary.json", "per_class.csv"


class RunDir:
    """Writes a run's folder; on every process but the main one it writes nothing but that process's own files.

    Attributes:
        folder: the run's folder.
        bad_images: reasons by the name of each image that this process could not use.
    """

    def __init__(self, folder: Path, *, is_main: bool, rank: int = 0) -> None:
        self.folder, self._is_main, self._rank = folder, is_main, rank
        self.bad_images: dict[str, str] = {}
        self._listeners: list[Callable[[Mapping[str, Any]], None]] = []

    def start(self, config: Config) -> None:
        """Makes the folder and writes the resolved settings."""
        if self._is_main:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                write_atomically(self.folder / CONFIG_NAME, config.to_yaml())
            except OSError as error:
                raise InputError(f"output: {self.folder} cannot be written ({error})") from error

    def rewind(self, model: str, step: int) -> None:
        """Forgets what was logged of a model after ``step``: the run will do these steps again."""
        path = self.folder / METRICS_NAME
        if self._is_main and path.is_file():
            lines = path.read_text().splitlines(keepends=True)
            write_atomically(path, "".join(line for line in lines if not _is_after(line, model, step)))

    def add_listener(self, listener: Callable[[Mapping[str, Any]], None]) -> None:
        """Has every record that is logged from now on passed on to ``listener`` too."""
        self._listeners.append(listener)

    def log(self, record: Mapping[str, Any]) -> None:
        """Appends one object to metrics.jsonl."""
        if self._is_main:
            with open(self.folder / METRICS_NAME, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            for listener in self._listeners:
                listener(record)

    def sync(self) -> None:
        """Returns when all that was logged has reached the disk, so that no checkpoint knows more than the log."""
        path = self.folder / METRICS_NAME
        if self._is_main and path.exists():
            fsync_path(path)

    def bad_image(self, name: str, reason: str) -> None:
        """Appends an image that cannot be used to this process's list, once."""
        if name in self.bad_images:
            return
        self.bad_images[name] = reason
        with open(self.folder / f"bad_images.rank-{self._rank}.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"image": name, "reason": reason}) + "\n")

    def log_batch(self, model: str, step: int, plan: Plan) -> None:
        """Appends what this process read in a step, for checking one run against another."""
        with open(self.folder / f"batches.rank-{self._rank}.jsonl", "a", encoding="utf-8") as file:
            batch = {field.name: getattr(plan, field.name).tolist() for field in fields(plan)}
            file.write(json.dumps({"model": model, "step": step, **batch}) + "\n")

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
                writer.writerow([label, name, train_counts[label], group, num_test, *row])


def is_old_run(path: Path) -> bool:
    """Whether a ``config.yaml`` is of version 0.1, whose settings had other names."""
    with suppress(OSError, UnicodeDecodeError, yaml.YAMLError):
        settings = yaml.safe_load(path.read_text())
        return isinstance(settings, dict) and "select" in settings and "checkpoint_selection" not in settings
    return False


class NullRunDir(RunDir):
    """The folder of a run that writes nothing; its bad images are remembered all the same."""

    def __init__(self) -> None:
        super().__init__(Path(), is_main=False)

    def bad_image(self, name: str, reason: str) -> None:
        self.bad_images[name] = reason


def _is_after(line: str, model: str, step: int) -> bool:
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        return True  # the end of a line that a kill cut off
    return record["model"] == model and record["step"] > step
