"""Trainer: a whole run, from settings to trained models, for scripts, notebooks and the command line."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from cbd_fast.config.schema import Config
from cbd_fast.errors import InputError
from cbd_fast.files import PARTIAL_SUFFIX
from cbd_fast.shards.reader import ShardReader
from cbd_fast.training.accelerate_environment import check_accelerate_environment
from cbd_fast.training.checkpoint import read_result
from cbd_fast.training.context import RunContext, describe_run, make_accelerator, open_context, open_shards
from cbd_fast.training.engine import train
from cbd_fast.training.global_state import global_state_restored
from cbd_fast.training.plan import ModelSpec, build_setup, finished_results, models_to_train, plan_models
from cbd_fast.training.run_dir import CONFIG_NAME, RunDir, is_old_run
from cbd_fast.training.trackers import check_trackers, start_trackers
from cbd_fast.ui.dashboard import Dashboard, PlannedModel, make_dashboard

Listener = Callable[[Mapping[str, Any]], None]


class Trainer:
    """A run: teachers, then the student that follows them.

        config = Config.from_file("configs/digits_lt.yaml", overrides=["seed=1"])
        summary = Trainer(config).fit()

    The same in a script, in a notebook's cell, and on every process of ``accelerate launch my_script.py`` or
    ``torchrun my_script.py``. What is finished is not trained again, and what was interrupted goes on.

    Attributes:
        config: settings of the run.
        specs: all models of the run, in their order; empty before ``fit``.
        results: result of every finished model by name, with its metrics; empty before ``fit``.
    """

    def __init__(
        self, config: Config, *, listeners: Sequence[Listener] = (), dashboard: Dashboard | None = None
    ) -> None:
        """Nothing is opened or written yet.

        Args:
            config: settings of the run.
            listeners: functions that are called with every record of ``metrics.jsonl``, on the main process.
            dashboard: what shows the run to a person; by default a live screen on a terminal, else plain lines.
        """
        self.config = config
        self.specs: list[ModelSpec] = []
        self.results: dict[str, dict[str, Any]] = {}
        self._listeners, self._dashboard = list(listeners), dashboard

    def add_listener(self, listener: Listener) -> None:
        """Has a function called with every record that is logged from now on, on the main process."""
        self._listeners.append(listener)

    def fit(self, stages: str | None = None) -> dict[str, Any]:
        """Trains what is not finished, and evaluates it on the test split.

        What the caller has set for the whole process (threads, cudnn, random numbers, warnings, Accelerate) is as
        before afterwards; a process group that was joined stays.

        Args:
            stages: ``teachers``, ``student`` or ``all``; by default as the settings say.

        Returns:
            What ``summary.json`` holds, on every process: metrics in percent of ``teachers`` and ``student``, which
            weights were ``selected``, the ``seconds`` of training.

        Raises:
            InputError: settings, shards or the run's folder cannot be used; nothing was written.
            RunError: a loss is not finite, too many images are bad, or a tracker does not start.
        """
        if stages not in (None, "teachers", "student", "all"):
            raise InputError(f"stages={stages!r}: must be teachers, student or all")
        config = self.config.model_copy(update={"stages": stages}) if stages else self.config
        shards, self.specs = check_run(config)
        specs = models_to_train(self.specs, config.stages)
        with global_state_restored():
            accelerator = make_accelerator(config)
            try:
                return self._run(config, shards, specs, accelerator)
            finally:
                for tracker in accelerator.trackers:
                    tracker.finish()

    def _run(
        self, config: Config, shards: ShardReader, specs: list[ModelSpec], accelerator: Accelerator
    ) -> dict[str, Any]:
        is_main = accelerator.is_main_process
        run_dir = RunDir(Path(config.output), is_main=is_main, rank=accelerator.process_index)
        for listener in self._listeners:
            run_dir.add_listener(listener)
        dashboard = self._dashboard if self._dashboard and is_main else make_dashboard(is_main)
        with open_context(config, shards, accelerator, run_dir, dashboard) as context:
            run_dir.start(config)
            if config.trackers and is_main:
                run_dir.add_listener(start_trackers(config, accelerator, self.specs))
            accelerator.wait_for_everyone()  # the folder is there for the records of all processes
            dashboard.start(describe_run(config, shards, accelerator), [_as_shown(spec) for spec in specs])
            try:
                train_models(specs, context)
            finally:
                dashboard.stop()
        self.results = finished_results(self.specs)
        summary = summarize(self.results)
        run_dir.summarize(summary)
        counts = {name: np.array(result["counts"]) for name, result in self.results.items()}
        run_dir.write_per_class(shards.manifest.classes, shards.record.class_counts, counts)
        return summary


def check_run(config: Config) -> tuple[ShardReader, list[ModelSpec]]:
    """The training split, and all models of a run that can be begun or gone on with; nothing is written.

    Raises:
        InputError: trackers, shards or the run's folder cannot be used.
    """
    check_accelerate_environment(config)
    check_trackers(config.trackers)
    check_output(Path(config.output))
    shards = open_shards(config)
    return shards, plan_models(config, shards)


def train_models(specs: Sequence[ModelSpec], context: RunContext) -> None:
    """Trains models one after the other, passing over those that are finished."""
    for spec in specs:
        if (result := read_result(spec.folder)) is not None:
            context.dashboard.note(f"{spec.name} is finished already")
            context.dashboard.evaluated(spec.name, spec.num_steps, result["metrics"])
            continue
        train(build_setup(spec, context.config), context)


def check_output(folder: Path) -> None:
    """Refuses a folder that holds anything but a run or finished teachers, which may be copies from other runs.

    Raises:
        InputError: the folder holds something else, or cannot be read.
    """
    try:
        paths = folder.iterdir() if folder.exists() else ()
        names = {path.name for path in paths if not _is_teacher(path)}
    except OSError as error:
        raise InputError(f"output: {folder} cannot be used ({error.strerror}); choose another output") from error
    if names - {CONFIG_NAME + PARTIAL_SUFFIX}:  # which a kill may have left
        if is_old_run(folder / CONFIG_NAME):
            raise InputError(
                f"output: {folder} holds a run of cbd_fast 0.1, which this version cannot go on with; choose another "
                "output and train again"
            )
        try:
            Config.from_file(folder / CONFIG_NAME)
        except InputError as error:
            raise InputError(
                f"output: {folder} already holds something that is no run of this version ({error}); "
                "choose another output or empty it"
            ) from error


def summarize(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What ``summary.json`` holds, from the results of the finished models."""
    metrics = {name: result["metrics"] for name, result in results.items()}
    return {
        "teachers": [values for name, values in metrics.items() if name != "student"],
        "student": metrics.get("student"),
        "selected": _selected(results),
        "evaluated_on": "test",
        "seconds": round(sum(result["seconds"] for result in results.values()), 1),
    }


def _selected(results: Mapping[str, Mapping[str, Any]]) -> str | dict[str, str]:
    """Which weights the metrics are of."""
    best = {name: result.get("selected") for name, result in results.items()}
    if not any(best.values()):
        return "last checkpoint"
    return {
        name: f"best on the validation split: step {state['step']} with {state['per_class_mean']:.2f} per-class mean"
        for name, state in best.items()
        if state
    }


def _is_teacher(folder: Path) -> bool:
    """Whether a folder is that of a finished teacher."""
    return folder.name.startswith("teacher-") and "identity" in (read_result(folder) or {})


def _as_shown(spec: ModelSpec) -> PlannedModel:
    """A model as the dashboard knows it."""
    return PlannedModel(name=spec.name, num_steps=spec.num_steps, num_teachers=spec.num_teachers)
