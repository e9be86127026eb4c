"""What a person sees of a run: a live screen on a terminal, plain lines anywhere else."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from cbd_fast.errors import printable
from cbd_fast.ui.console import Rate, make_console

OWN_LINE = ("batch_milliseconds", "cache_fill")  # numbers with a line of their own
FIRST_METRICS = ("top1", "top5", "per_class_mean", "many", "medium", "few")  # any others follow in their own order

Metrics = Mapping[str, float | None]  # percent by name; None: nothing to measure


@dataclass(frozen=True, kw_only=True)
class PlannedModel:
    """A model of the run, as the dashboard knows it.

    Attributes:
        name: ``teacher-1``, ..., ``student``.
        num_steps: updates from the start to the end of its training.
        num_teachers: teachers whose features it follows.
    """

    name: str
    num_steps: int
    num_teachers: int

    @property
    def cost(self) -> float:
        """Relative cost of a step: a teacher's forward pass is about a third of a forward and backward pass."""
        return 1 + self.num_teachers / 3


class Dashboard(Protocol):
    """What the trainer reports to, event by event."""

    def start(self, title: str, models: Sequence[PlannedModel]) -> None:
        """The beginning of the run; ``models`` in the order in which they are trained."""

    def begin(self, model: str, step: int) -> None:
        """The beginning of a model's training, or its continuation after ``step`` steps."""

    def cache_fill(self, done: int, total: int) -> None:
        """The number of images decoded for the cache so far, of ``total``."""

    def log(self, record: Mapping[str, Any]) -> None:
        """A training record of metrics.jsonl."""

    def evaluated(self, model: str, step: int, metrics: Metrics, split: str = "test") -> None:
        """The metrics of a model on a split, just measured or, of a finished model, read from its folder."""

    def note(self, message: str) -> None:
        """Anything else that the person should know."""

    def stop(self) -> None:
        """The end of the run, successful or not."""


class TimeLeft:
    """An estimate of the rest of the run, from the steps done since this process began."""

    def __init__(self, models: Sequence[PlannedModel]) -> None:
        self._models = list(models)
        self._seconds = self._cost_done = 0.0
        self._last_step, self._last_time = 0, time.perf_counter()

    def begin(self, step: int) -> None:
        """Starts the clock of a model."""
        self._last_step, self._last_time = step, time.perf_counter()

    def seconds(self, model: str, step: int) -> float | None:
        """Seconds until all models are trained; None before any step was timed."""
        number = next(number for number, planned in enumerate(self._models) if planned.name == model)
        planned = self._models[number]
        now = time.perf_counter()
        self._seconds += now - self._last_time
        self._cost_done += (step - self._last_step) * planned.cost
        self._last_step, self._last_time = step, now
        if not self._cost_done:
            return None
        later = sum(other.num_steps * other.cost for other in self._models[number + 1 :])
        return ((planned.num_steps - step) * planned.cost + later) * self._seconds / self._cost_done


class NullDashboard:
    """The dashboard of processes that nobody watches."""

    def start(self, title: str, models: Sequence[PlannedModel]) -> None: ...
    def begin(self, model: str, step: int) -> None: ...
    def cache_fill(self, done: int, total: int) -> None: ...
    def log(self, record: Mapping[str, Any]) -> None: ...
    def evaluated(self, model: str, step: int, metrics: Metrics, split: str = "test") -> None: ...
    def note(self, message: str) -> None: ...
    def stop(self) -> None: ...


class PlainLog:
    """One plain line per record, without control characters, for files and pipes."""

    def start(self, title: str, models: Sequence[PlannedModel]) -> None:
        self._time_left = TimeLeft(models)
        self._num_steps = {model.name: model.num_steps for model in models}
        self._print(title)

    def begin(self, model: str, step: int) -> None:
        self._time_left.begin(step)
        self._print(f"{model}: goes on after step {step}" if step else f"{model}: begins")

    def cache_fill(self, done: int, total: int) -> None:
        if not done:
            self._rate = Rate()
        if done == total:
            self._print(f"{total:,} images are cached  {self._rate.describe(total)}".rstrip())

    def log(self, record: Mapping[str, Any]) -> None:
        model, step = record["model"], record["step"]
        seconds_left = self._time_left.seconds(model, step)
        parts = [f"{model} step {step}/{self._num_steps[model]}", *describe_record(record).values()]
        self._print("  ".join([*parts, f"left {duration(seconds_left)}"]))

    def evaluated(self, model: str, step: int, metrics: Metrics, split: str = "test") -> None:
        where = "" if split == "test" else f" on {split}"
        parts = [f"{name} {percent(metrics[name])}" for name in metric_names([metrics])]
        self._print(f"{model} after step {step}{where}: " + "  ".join(parts))

    def note(self, message: str) -> None:
        self._print(message)

    def stop(self) -> None:
        pass

    def _print(self, line: str) -> None:
        print(printable(line), flush=True)


class Screen:
    """A live screen: progress of every model, the latest numbers, evaluations side by side."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def start(self, title: str, models: Sequence[PlannedModel]) -> None:
        self._title, self._time_left, self._start_time = title, TimeLeft(models), time.perf_counter()
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn())
        self._progress = Progress(*columns, console=self._console, expand=True)
        self._tasks: dict[str, TaskID] = {
            model.name: self._progress.add_task(model.name, total=model.num_steps) for model in models
        }
        self._model = ""
        self._seconds_left: float | None = None
        self._estimate_time = self._start_time
        self._numbers: dict[str, str] = {}
        self._evaluations: dict[str, tuple[int, Metrics]] = {}
        self._notes: list[str] = []
        # transient: in the end the comparison of all models stands in its place
        self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=4, transient=True)
        self._live.start()

    def begin(self, model: str, step: int) -> None:
        self._time_left.begin(step)
        self._model, self._numbers = model, {}
        self._progress.update(self._tasks[model], completed=step)

    def cache_fill(self, done: int, total: int) -> None:
        if not done:
            self._rate = Rate()
        self._numbers = {"cache_fill": f"cached images {done:,} of {total:,}  {self._rate.describe(done)}".rstrip()}

    def log(self, record: Mapping[str, Any]) -> None:
        self._seconds_left = self._time_left.seconds(record["model"], record["step"])
        self._estimate_time = time.perf_counter()
        self._numbers = describe_record(record)
        self._progress.update(self._tasks[record["model"]], completed=record["step"])

    def evaluated(self, model: str, step: int, metrics: Metrics, split: str = "test") -> None:
        self._evaluations[model if split == "test" else f"{model} on {split}"] = (step, metrics)
        self._progress.update(self._tasks[model], completed=step)

    def note(self, message: str) -> None:
        self._notes = [*self._notes[-4:], printable(message)]

    def stop(self) -> None:
        self._live.stop()

    def _render(self) -> RenderableType:
        now = time.perf_counter()
        left = self._seconds_left
        if left is not None:
            left = max(0.0, left - (now - self._estimate_time))
        clock = f"{self._model}    elapsed {duration(now - self._start_time)}    left {duration(left)}"
        numbers = Table.grid(padding=(0, 3), expand=False)
        cells = [text for name, text in self._numbers.items() if name not in OWN_LINE]
        for start in range(0, len(cells), 4):
            numbers.add_row(*cells[start : start + 4])
        parts: list[RenderableType] = [clock, self._progress, numbers]
        parts += [text for name, text in self._numbers.items() if name in OWN_LINE]
        if self._evaluations:
            parts.append(comparison(self._evaluations))
        parts += [Text(note, "yellow") for note in self._notes]  # not markup: they hold names of files
        # narrower than the terminal: what it shows of a Ctrl-C would else begin a line that nobody takes away
        width = self._console.width - len("^C^C^C")
        title = Text(printable(self._title))
        title.truncate(max(1, width - 6), overflow="ellipsis")  # or the panel would grow with it
        return Panel(Group(*parts), title=title, title_align="left", width=width)


def make_dashboard(is_main: bool) -> Dashboard:
    """The dashboard that fits: none, a live screen on a terminal, or plain lines."""
    if not is_main:
        return NullDashboard()
    console = make_console()
    return Screen(console) if console.is_terminal else PlainLog()


def comparison(evaluations: Mapping[str, tuple[int, Metrics]]) -> Table:
    """A table of models side by side, one per row, with their metrics in percent.

    Args:
        evaluations: step and metrics of each model, by name; a metric that a model lacks is shown as a dash.
    """
    names = metric_names([metrics for _, metrics in evaluations.values()])
    table = Table(title="accuracy in percent", title_justify="left", title_style="bold")
    table.add_column("model")
    table.add_column("step", justify="right")
    for name in names:
        table.add_column(Text(name.replace("_", " ")), justify="right")  # not markup: users name metrics too
    for model, (step, metrics) in evaluations.items():
        table.add_row(model, str(step), *(percent(metrics.get(name)) for name in names))
    return table


def metric_names(evaluations: Iterable[Metrics]) -> list[str]:
    """The metrics of any of these evaluations, ``FIRST_METRICS`` first, the others in their own order."""
    names = list(dict.fromkeys(name for metrics in evaluations for name in metrics))
    return sorted(names, key=lambda name: FIRST_METRICS.index(name) if name in FIRST_METRICS else len(FIRST_METRICS))


def describe_record(record: Mapping[str, Any]) -> dict[str, str]:
    """The numbers of a training record in words, by name."""
    losses = {name: f"{name.replace('_', ' ')} {record[name]:.4f}" for name in record if name.endswith("loss")}
    words = {
        "train_top1": f"train top1 {record['train_top1']:.1f}",
        "learning_rate": f"lr {record['learning_rate']:.5f}",
        "images_per_second": f"{record['images_per_second']:,.0f} images/s",
        "data_wait_fraction": f"waiting for data {100 * record['data_wait_fraction']:.1f} %",
        "memory_gigabytes": f"memory {record['memory_gigabytes']:.2f} GB",
    }
    parts = "  ".join(f"{name} {value:.0f}" for name, value in record["batch_milliseconds"].items())
    words["batch_milliseconds"] = f"ms of a batch: {parts}"
    if record["bad_images"]:
        words["bad_images"] = f"bad images {record['bad_images']}"
    return losses | words


def percent(value: float | None) -> str:
    """A number with one decimal, or a dash for None."""
    return "-" if value is None else f"{value:.1f}"


def duration(seconds: float | None) -> str:
    """Hours, minutes and seconds, such as ``1:02:03``; ``unknown`` for None."""
    return "unknown" if seconds is None else str(timedelta(seconds=round(seconds)))
