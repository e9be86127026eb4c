"""Trainer: a whole run, from settings to trained models, for scripts, notebooks and the command line."""

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from cbd_fast.config.schema import Config
from cbd_fast.errors import InputError
from cbd_fast.files import PARTIAL_SUFFIX
from cbd_fast.folder_lock import locked_folder
from cbd_fast.processes import env_world_size
from cbd_fast.shards.reader import ShardReader
from cbd_fast.training.accelerate_environment import check_accelerate_environment
from cbd_fast.training.context import RunContext, describe_run, make_accelerator, open_context, open_shards
from cbd_fast.training.doubts import accuracies_elsewhere, doubts
from cbd_fast.training.engine import train
from cbd_fast.training.finished import is_result, read_finished, remove_leftovers
from cbd_fast.training.global_state import global_state_restored
from cbd_fast.training.launcher_watch import ends_with_launcher
from cbd_fast.training.peers import Peers
from cbd_fast.training.plan import ModelSpec, build_setup, finished_results, models_to_train, plan_models
from cbd_fast.training.run_dir import CONFIG_NAME, RunDir, is_old_run, looks_like_run
from cbd_fast.training.stopping import Stops, handled_by
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

        Meanwhile nobody else can write into the run's folder. SIGTERM, SIGINT (Ctrl-C), SIGHUP and SIGUSR1 stop the
        training after the step that is under way, with a checkpoint; a second SIGINT stops it at once.

        What the caller has set for the whole process (signals, threads, cudnn, random numbers, warnings, Accelerate)
        is as before afterwards; a process group that was joined stays.

        Args:
            stages: ``teachers``, ``student`` or ``all``; by default as the settings say.

        Returns:
            What ``summary.json`` holds, on every process: metrics in percent of ``teachers`` and ``student``, which
            weights were ``selected``, the ``seconds`` of training, and ``warnings`` of models that are of no use.

        Raises:
            InputError: settings, shards or the run's folder cannot be used, or another process has the folder;
                nothing was written.
            RunError: a loss is not finite, too many images are bad, a tracker does not start, or another process is
                gone.
            Stopped: a signal came; it is a ``KeyboardInterrupt``, and ``fit`` goes on from there when it is called
                again.
        """
        if stages not in (None, "teachers", "student", "all"):
            raise InputError(f"stages={stages!r}: must be teachers, student or all")
        config = self.config.model_copy(update={"stages": stages}) if stages else self.config
        shards, self.specs = check_run(config)
        models_to_train(self.specs, config.stages)
        with global_state_restored():
            # joining others waits where Python's handlers are not heard
            with handled_by(signal.SIG_DFL) if env_world_size() > 1 else nullcontext():
                accelerator = make_accelerator(config)
            stops, peers = Stops(accelerator.num_processes), Peers(accelerator)
            try:
                with stops.on_signals(), ends_with_launcher(stops), peers.explained():
                    return self._run(config, shards, accelerator, stops, peers)
            finally:
                for tracker in accelerator.trackers:
                    tracker.finish()

    def _run(
        self, config: Config, shards: ShardReader, accelerator: Accelerator, stops: Stops, peers: Peers
    ) -> dict[str, Any]:
        is_main, folder = accelerator.is_main_process, Path(config.output)
        run_dir = RunDir(folder, is_main=is_main, rank=accelerator.process_index)
        for listener in self._listeners:
            run_dir.add_listener(listener)
        dashboard = self._dashboard if self._dashboard and is_main else make_dashboard(is_main)
        with ExitStack() as held, open_context(config, shards, accelerator, run_dir, dashboard, stops) as context:
            peers.main_first(lambda: held.enter_context(locked_output(folder)))
            # again, as what the folder holds may be of somebody who had it until now
            check_output(folder)
            self.specs = plan_models(config, shards)
            specs = models_to_train(self.specs, config.stages)
            peers.main_first(lambda: run_dir.start(config))  # the folder is there for the records of all processes
            if config.trackers and is_main:
                run_dir.add_listener(start_trackers(config, accelerator, self.specs))
            dashboard.start(describe_run(config, shards, accelerator), [_as_shown(spec) for spec in specs])
            try:
                for note in run_dir.notes:
                    dashboard.note(note)
                train_models(specs, context)
            finally:
                dashboard.stop()
            return self._summarize(run_dir, shards)

    def _summarize(self, run_dir: RunDir, shards: ShardReader) -> dict[str, Any]:
        """Writes what came out, and returns what ``summary.json`` holds."""
        self.results = finished_results(self.specs)
        others = set(self.specs[-1].teachers) - {spec.folder for spec in self.specs}
        summary = summarize(self.results, accuracies_elsewhere(sorted(others), shards.manifest.fingerprint))
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


@contextmanager
def locked_output(folder: Path) -> Iterator[None]:
    """Has the run's folder for this process alone as long as the block runs, so that no two runs become one.

    Raises:
        InputError: another process has it, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"output: {folder} cannot be written ({error})") from error
    with locked_folder(folder, with_children=False):
        yield


def train_models(specs: Sequence[ModelSpec], context: RunContext) -> None:
    """Trains models one after the other, passing over those that are finished."""
    for spec in specs:
        if (result := read_finished(spec.folder)) is not None:
            if context.accelerator.is_main_process:
                remove_leftovers(spec.folder)  # of a run that was killed when it had written the result
            context.dashboard.note(f"{spec.name} is finished already")
            context.dashboard.evaluated(spec.name, spec.num_steps, result.metrics)
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
            if looks_like_run(folder):  # its settings are given anew, and each model in it is compared with them
                return
            raise InputError(
                f"output: {folder} already holds something that is no run of this version ({error}); "
                "choose another output, or move elsewhere what is there"
            ) from error


def summarize(
    results: Mapping[str, Mapping[str, Any]], other_teachers: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """What ``summary.json`` holds, from the results of the finished models.

    Args:
        results: of the models of the run, by name.
        other_teachers: mean accuracy of the classes in percent of teachers of other runs, by name.
    """
    metrics = {name: result["metrics"] for name, result in results.items()}
    return {
        "teachers": [values for name, values in metrics.items() if name != "student"],
        "student": metrics.get("student"),
        "selected": _selected(results),
        "evaluated_on": "test",
        "seconds": round(sum(result["seconds"] for result in results.values()), 1),
        "warnings": doubts(results, other_teachers),
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
    return folder.name.startswith("teacher-") and is_result(folder)


def _as_shown(spec: ModelSpec) -> PlannedModel:
    """A model as the dashboard knows it."""
    return PlannedModel(name=spec.name, num_steps=spec.num_steps, num_teachers=spec.num_teachers)
