"""Experiment trackers such as TensorBoard, through Accelerate: every record of metrics.jsonl goes there too."""

import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType, ProjectConfiguration

from cbd_fast.config.schema import Config
from cbd_fast.errors import InputError, RunError
from cbd_fast.files import write_atomically
from cbd_fast.settings import flattened
from cbd_fast.training.plan import ModelSpec

FOLDER_NAME, ID_NAME = "trackers", "run_id"
PROJECT = "cbd_fast"
KNOWN = tuple(sorted(set(LoggerType.list()) - {"all"}))
# whose steps may only grow over a whole run, and not start again with each model
ONE_STEP_AXIS = ("wandb",)


def check_trackers(names: Sequence[str]) -> None:
    """Refuses trackers that cannot be used.

    Raises:
        InputError: Accelerate does not know a tracker, or its package is not installed.
    """
    for name in names:
        if name not in KNOWN:
            raise InputError(f"trackers: no tracker is called {name!r}; known are {', '.join(KNOWN)}")
        if name not in map(str, get_available_trackers()):
            raise InputError(f"trackers: {name} is not installed; pip install {name}, or leave it out")


def tracking_options(config: Config) -> dict[str, Any]:
    """What the ``Accelerator`` of a run is made with, for its trackers; nothing is written yet."""
    if not config.trackers:
        return {}
    folder = Path(config.output)
    project = ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder / FOLDER_NAME))
    return {"log_with": list(config.trackers), "project_config": project}


def start_trackers(
    config: Config, accelerator: Accelerator, specs: Sequence[ModelSpec]
) -> Callable[[Mapping[str, Any]], None]:
    """Starts the trackers in the run's folder, on the main process.

    Args:
        config: the run's settings, which become hyper-parameters.
        accelerator: made with ``tracking_options``.
        specs: all models of the run, in their order.

    Returns:
        A function that passes a record of metrics.jsonl on to them.

    Raises:
        RunError: a tracker does not start, perhaps because it wants a login or the network.
    """
    folder = Path(config.output) / FOLDER_NAME
    folder.mkdir(exist_ok=True)
    try:
        accelerator.init_trackers(PROJECT, dict(hyper_parameters(config)), _options(config, folder))
        for tracker in accelerator.trackers:
            if tracker.name in ONE_STEP_AXIS:
                for spec in specs:
                    tracker.tracker.define_metric(f"{spec.name}/*", step_metric=f"{spec.name}/step")
    except Exception as error:  # of somebody else's package, and each has its own
        raise RunError(
            f"trackers: {', '.join(config.trackers)} did not start ({error}); start the same command again when it "
            "can, or leave it out of trackers"
        ) from error
    steps_before = {spec.name: sum(other.num_steps for other in specs[:number]) for number, spec in enumerate(specs)}

    def track(record: Mapping[str, Any]) -> None:
        values, step = dict(tracked_values(record)), record["step"]
        for tracker in accelerator.trackers:
            before = steps_before[record["model"]] if tracker.name in ONE_STEP_AXIS else 0
            tracker.log(values, step=before + step)

    return track


def hyper_parameters(config: Config) -> Iterator[tuple[str, int | float | str | bool]]:
    """Settings by dotted name, lists taken apart, in types that every tracker takes."""
    for name, value in _leaves(config.model_dump(mode="json")):
        yield name, "none" if value is None else value


def tracked_values(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of a record by name, such as ``teacher-1/loss`` and ``student/test/top1``."""
    place = "/".join([record["model"], *([record["split"]] if "split" in record else [])])
    yield f"{record['model']}/step", record["step"]
    rest = {name: value for name, value in record.items() if name not in ("model", "split", "step")}
    for name, value in flattened(rest):
        if isinstance(value, Real):  # None is what could not be measured
            yield f"{place}/{name.replace('.', '/')}", float(value)


def _leaves(settings: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in flattened(settings):
        if isinstance(value, list):
            yield from _leaves({f"{name}.{number}": item for number, item in enumerate(value, 1)})
        else:
            yield name, value


def _options(config: Config, folder: Path) -> dict[str, dict[str, Any]]:
    """What single trackers want to be told, so that their files lie in the folder and a run that goes on is one run."""
    name = Path(config.output).resolve().name
    options: dict[str, dict[str, Any]] = {}
    if "wandb" in config.trackers:
        options["wandb"] = {"name": name, "dir": str(folder), "id": _run_id(folder), "resume": "allow"}
    if "mlflow" in config.trackers:
        options["mlflow"] = {"run_name": name}
    return options


def _run_id(folder: Path) -> str:
    """By which a tracker's server knows this run; made once."""
    path = folder / ID_NAME
    if not path.is_file() or not re.fullmatch(b"[0-9a-f]{32}", path.read_bytes()):
        write_atomically(path, uuid.uuid4().hex)
    return path.read_text()
