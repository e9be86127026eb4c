"""What a person sees of a run: a live screen on a terminal, plain lines anywhere else. It only looks."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from cbd_fast.ui.console import Rate, make_console

LONG = ("batch_milliseconds", "cache_fill")  # numbers that have a line of their own
METRICS = ("top1", "top5", "per_class_mean", "many", "medium", "few")


@dataclass(frozen=True, kw_only=True)
class PlannedModel:
    """A model of the run, as the dashboard knows it."""

    name: str
    stage: str
    num_steps: int
    num_teachers: int

    @property
    def cost(self) -> float:
        """Relative cost of a step: a teacher's forward pass is about a third of a forward and backward pass."""
        return 1 + self.num_teachers / 3


class Dashboard(Protocol):
    """Told by the trainer what happens."""

    def start(self, title: str, models: Sequence[PlannedModel]) -> None:
        """The run begins; ``models`` in the order in which they are trained."""

    def begin(self, model: str, step: int) -> None:
        """Training of a model begins, or goes on, after ``step`` steps."""

    def cache_fill(self, done: int, total: int) -> None:
        """So many of the images that are to be cached are decoded."""

    def log(self, record: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl."""

    def evaluated(self, model: str, step: int, metrics: Mapping[str, float | None], split: str = "test") -> None:
        """A model was evaluated on a split, or was found finished."""

    def note(self, message: str) -> None:
        """Something that the person should know."""

    def stop(self) -> None:
        """The run ended, one way or another."""


class TimeLeft:
    """Estimates the rest of the run from the steps done since this process began."""

    def __init__(self, models: Sequence[PlannedModel]) -> None:
        self._models = list(models)
        self._seconds = self._cost_done = 0.0
        self._step, self._at = 0, time.perf_counter()

    def begin(self, step: int) -> None:
        """Starts the clock of a model."""
        self._step, self._at = step, time.perf_counter()

    def seconds(self, model: str, step: int) -> float | None:
        """Seconds until all models are trained; None before any step was timed."""
        number = next(number for number, planned in enumerate(self._models) if planned.name == model)
        planned = self._models[number]
        now = time.perf_counter()
        self._seconds += now - self._at
        self._cost_done += (step - self._step) * planned.cost
        self._step, self._at = step, now
        if not self._cost_done:
            return None
        later = sum(other.num_steps * other.cost for other in self._models[number + 1 :])
        return ((planned.num_steps - step) * planned.cost + later) * self._seconds / self._cost_done


class NullDashboard:
    """For the processes that nobody watches."""

    def start(self, title: str, models: Sequence[PlannedModel]) -> None: ...
    def begin(self, model: str, step: int) -> None: ...
    def cache_fill(self, done: int, total: int) -> None: ...
    def log(self, record: Mapping[str, Any]) -> None: ...
    def evaluated(self, model: str, step: int, metrics: Mapping[str, float | None], split: str = "test") -> None: ...
    def note(self, message: str) -> None: ...
    def stop(self) -> None: ...


class PlainLog:
    """One plain line per record, without control characters, for files and pipes."""

    def start(self, title: str, models: Sequence[PlannedModel]) -> None:
        self._left = TimeLeft(models)
        self._models = {model.name: model for model in models}
        self._print(title)

    def begin(self, model: str, step: int) -> None:
        self._left.begin(step)
        how = f"goes on after step {step}" if step else "begins"
        self._print(f"stage {self._models[model].stage}, {model}: {how}")

    def cache_fill(self, done: int, total: int) -> None:
        if not done:
            self._rate = Rate()
        if done == total:
            self._print(f"{total:,} images are cached  {self._rate.describe(total)}".rstrip())

    def log(self, record: Mapping[str, Any]) -> None:
        model, step = record["model"], record["step"]
        left = self._left.seconds(model, step)
        parts = [f"{model} step {step}/{self._models[model].num_steps}", *described(record).values()]
        self._print("  ".join([*parts, f"left {duration(left)}"]))

    def evaluated(self, model: str, step: int, metrics: Mapping[str, float | None], split: str = "test") -> None:
        where = "" if split == "test" else f" on {split}"
        self._print(
            f"{model} after step {step}{where}: " + "  ".join(f"{name} {percent(metrics[name])}" for name in METRICS)
        )

    def note(self, message: str) -> None:
        self._print(message)

    def stop(self) -> None:
        pass

    def _print(self, line: str) -> None:
        print(line, flush=True)


class Screen:
    """A live screen: progress of every model, the latest numbers, evaluations side by side."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def start(self, title: str, models: Sequence[PlannedModel]) -> None:
        self._title, self._left, self._began = title, TimeLeft(models), time.perf_counter()
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn())
        self._progress = Progress(*columns, console=self._console, expand=True)
        self._tasks: dict[str, TaskID] = {
            model.name: self._progress.add_task(model.name, total=model.num_steps) for model in models
        }
        self._stages = {model.name: model.stage for model in models}
        self._model = ""
        self._seconds_left: float | None = None
        self._left_at = self._began
        self._numbers: dict[str, str] = {}
        self._evaluations: dict[str, tuple[int, Mapping[str, float | None]]] = {}
        self._notes: list[str] = []
        # transient: in the end the comparison of all models stands in its place
        self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=4, transient=True)
        self._live.start()

    def begin(self, model: str, step: int) -> None:
        self._left.begin(step)
        self._model, self._numbers = f"stage {self._stages[model]}, {model}", {}
        self._progress.update(self._tasks[model], completed=step)

    def cache_fill(self, done: int, total: int) -> None:
        if not done:
            self._rate = Rate()
        self._numbers = {"cache_fill": f"cached images {done:,} of {total:,}  {self._rate.describe(done)}".rstrip()}

    def log(self, record: Mapping[str, Any]) -> None:
        self._seconds_left = self._left.seconds(record["model"], record["step"])
        self._left_at = time.perf_counter()
        self._numbers = described(record)
        self._progress.update(self._tasks[record["model"]], completed=record["step"])

    def evaluated(self, model: str, step: int, metrics: Mapping[str, float | None], split: str = "test") -> None:
        self._evaluations[model if split == "test" else f"{model} on {split}"] = (step, metrics)
        self._progress.update(self._tasks[model], completed=step)

    def note(self, message: str) -> None:
        self._notes = [*self._notes[-4:], message]

    def stop(self) -> None:
        self._live.stop()

    def _render(self) -> RenderableType:
        now = time.perf_counter()
        left = self._seconds_left
        if left is not None:
            left = max(0.0, left - (now - self._left_at))
        clock = f"{self._model}    elapsed {duration(now - self._began)}    left {duration(left)}"
        numbers = Table.grid(padding=(0, 3), expand=False)
        cells = [text for name, text in self._numbers.items() if name not in LONG]
        for row in range(0, len(cells), 4):
            numbers.add_row(*cells[row : row + 4])
        parts: list[RenderableType] = [clock, self._progress, numbers]
        parts += [text for name, text in self._numbers.items() if name in LONG]
        if self._evaluations:
            parts.append(comparison(self._evaluations))
        parts += [Text(note, "yellow") for note in self._notes]  # not markup: they hold names of files
        return Panel(Group(*parts), title=Text(self._title), title_align="left")


def make_dashboard(is_main: bool) -> Dashboard:
    """The dashboard that fits: none, a live screen on a terminal, or plain lines."""
    if not is_main:
        return NullDashboard()
    console = make_console()
    return Screen(console) if console.is_terminal else PlainLog()


def comparison(evaluations: Mapping[str, tuple[int, Mapping[str, float | None]]]) -> Table:
    """Models side by side: a row each, their accuracies in percent."""
    table = Table(title="accuracy in percent", title_justify="left", title_style="bold")
    table.add_column("model")
    table.add_column("step", justify="right")
    for name in METRICS:
        table.add_column(name.replace("_", " "), justify="right")
    for model, (step, metrics) in evaluations.items():
        table.add_row(model, str(step), *(percent(metrics[name]) for name in METRICS))
    return table


def described(record: Mapping[str, Any]) -> dict[str, str]:
    """The numbers of a log record in words, by name."""
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
    """One decimal, or a dash for what was not measured."""
    return "-" if value is None else f"{value:.1f}"


def duration(seconds: float | None) -> str:
    """Hours, minutes and seconds."""
    return "unknown" if seconds is None else str(timedelta(seconds=round(seconds)))
