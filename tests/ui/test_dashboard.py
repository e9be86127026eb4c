import io

import pytest
from rich.console import Console

from cbd_fast.ui import dashboard
from cbd_fast.ui.console import make_console
from cbd_fast.ui.dashboard import PlainLog, PlannedModel, Screen, TimeLeft, comparison, make_dashboard

MODELS = [
    PlannedModel(name="teacher-1", num_steps=100, num_teachers=0),
    PlannedModel(name="student", num_steps=100, num_teachers=3),
]
RECORD = {
    "model": "student",
    "step": 50,
    "loss": 3.25,
    "classification_loss": 1.5,
    "distillation_loss": 0.0625,
    "train_top1": 43.21,
    "learning_rate": 0.05,
    "images_per_second": 1234.5,
    "data_wait_fraction": 0.031,
    "batch_milliseconds": {"planning": 1.6, "reading": 7.0, "decoding": 138.2, "finishing": 13.0, "waiting": 87.4},
    "memory_gigabytes": 1.5,
    "bad_images": 2,
}
METRICS = {"top1": 55.55, "top5": 80.0, "per_class_mean": 54.0, "many": 70.0, "medium": 50.0, "few": None}
SEEN = ("loss 3.2500", "classification loss 1.5000", "distillation loss 0.0625", "lr 0.05000", "1,234 images/s")
SEEN = (*SEEN, "planning 2  reading 7  decoding 138  finishing 13  waiting 87")
SEEN = (*SEEN, "waiting for data 3.1 %", "memory 1.50 GB", "bad images 2", "train top1 43.2")


def show(board):
    board.start("runs/x: resnet50", MODELS)
    board.note("teacher-1 is finished already")
    board.evaluated("teacher-1", 100, METRICS)
    board.begin("student", 0)
    board.log(RECORD)
    board.evaluated("student", 100, METRICS)
    board.stop()


def test_plain_lines_have_no_control_characters(capsys):
    show(PlainLog())
    out = capsys.readouterr().out
    assert out.isprintable() or set(out) - {"\n"} == {c for c in out if c.isprintable()}
    (line,) = [line for line in out.splitlines() if line.startswith("student step 50/100")]
    assert all(part in line for part in SEEN)
    assert "left 0:00:0" in line
    assert "student after step 100: top1 55.5  top5 80.0  per_class_mean 54.0  many 70.0  medium 50.0  few -" in out


def test_screen_shows_everything():
    console = Console(file=io.StringIO(), force_terminal=True, width=120, height=40)
    show(Screen(console))
    out = console.file.getvalue()
    for part in (
        *SEEN,
        "runs/x: resnet50",
        "teacher-1 is finished already",
        "elapsed",
        "left",
        "100/100",
        "per class mean",
    ):
        assert part in out
    assert "55.5" in out


def test_a_model_is_announced_by_its_name(capsys):
    log = PlainLog()
    log.start("title", MODELS)
    log.begin("teacher-1", 0)
    log.begin("teacher-1", 5)
    assert capsys.readouterr().out.splitlines()[1:] == ["teacher-1: begins", "teacher-1: goes on after step 5"]
    console = Console(file=io.StringIO(), force_terminal=True, width=120, height=40)
    screen = Screen(console)
    screen.start("title", MODELS)
    screen.begin("teacher-1", 5)
    screen.stop()
    lines = console.file.getvalue().splitlines()
    assert any(line.startswith("│ teacher-1    elapsed") for line in lines), lines


def table_lines(evaluations) -> list[str]:
    console = Console(file=io.StringIO(), width=100)
    console.print(comparison(evaluations))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_the_table_of_the_usual_metrics():
    assert table_lines({"teacher-1": (100, METRICS), "student": (90, METRICS | {"few": 3.25})}) == [
        "accuracy in percent",
        "┏━━━━━━━━━━━┳━━━━━━┳━━━━━━┳━━━━━━┳━━━━━━━━━━━━━━━━┳━━━━━━┳━━━━━━━━┳━━━━━┓",
        "┃ model     ┃ step ┃ top1 ┃ top5 ┃ per class mean ┃ many ┃ medium ┃ few ┃",
        "┡━━━━━━━━━━━╇━━━━━━╇━━━━━━╇━━━━━━╇━━━━━━━━━━━━━━━━╇━━━━━━╇━━━━━━━━╇━━━━━┩",
        "│ teacher-1 │  100 │ 55.5 │ 80.0 │           54.0 │ 70.0 │   50.0 │   - │",
        "│ student   │   90 │ 55.5 │ 80.0 │           54.0 │ 70.0 │   50.0 │ 3.2 │",
        "└───────────┴──────┴──────┴──────┴────────────────┴──────┴────────┴─────┘",
    ]


def test_metrics_of_users_follow_ours(capsys):
    teacher = {"macro_f1": 9.0, "my[bold]_score": None, "few": 3.0, "top1": 50.0}
    lines = table_lines({"teacher-1": (10, teacher), "student": (10, {"top1": 60.0, "other": 7.0})})
    rows = [[cell.strip() for cell in line.strip("┃│").replace("┃", "│").split("│")] for line in lines[2:6]]
    assert rows[0] == ["model", "step", "top1", "few", "macro f1", "my[bold] score", "other"]
    assert rows[2:] == [
        ["teacher-1", "10", "50.0", "3.0", "9.0", "-", "-"],
        ["student", "10", "60.0", "-", "-", "-", "7.0"],
    ]
    log = PlainLog()
    log.start("title", MODELS)
    log.evaluated("teacher-1", 10, teacher, "val")
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == "teacher-1 after step 10 on val: top1 50.0  few 3.0  macro_f1 9.0  my[bold]_score -"


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(dashboard.time, "perf_counter", lambda: now[0])
    return now


def test_time_left_by_hand(clock):
    left = TimeLeft(MODELS)
    left.begin(0)
    assert left.seconds("teacher-1", 0) is None
    clock[0] = 10.0
    # 20 steps in 10 s; 80 more, and 100 of the student at (1 + 3 / 3) times the cost
    assert left.seconds("teacher-1", 20) == pytest.approx((80 + 200) / 2)
    left.begin(90)  # the student goes on after step 90
    clock[0] = 14.0
    # 30 units of cost in 14 s; 5 steps of 2 are left
    assert left.seconds("student", 95) == pytest.approx(10 * 14 / 30)


def test_the_dashboard_fits_the_place(capsys):
    assert isinstance(make_dashboard(is_main=True), PlainLog)  # pytest is no terminal
    show(make_dashboard(is_main=False))
    assert capsys.readouterr().out == ""


def test_a_panel_leaves_room_for_what_the_terminal_shows_of_a_ctrl_c():
    """Behind a panel as wide as the terminal it would begin a new line, and a line of the panel would stay."""
    screen = Screen(Console(file=io.StringIO(), force_terminal=True, width=80, height=40))
    screen.start("r" * 100, MODELS)
    panel = screen._render()
    screen.stop()
    plain = Console(file=io.StringIO(), width=80)
    plain.print(panel)
    assert max(map(len, plain.file.getvalue().splitlines())) == 80 - len("^C^C^C")


def test_names_from_outside_cannot_move_the_cursor(capsys):
    hostile = "runs/a\x1b[2J\r\n"
    board = PlainLog()
    board.start(hostile, MODELS)
    board.note(f"bad image {hostile}")
    assert capsys.readouterr().out == "runs/a\\x1b[2J\\r\\n\nbad image runs/a\\x1b[2J\\r\\n\n"
    console = make_console(file=io.StringIO(), width=200)
    console._force_terminal = True
    screen = Screen(console)
    screen.start(hostile, MODELS)
    screen.note(f"bad image {hostile}")
    console.print(screen._render())
    screen.stop()
    shown = console.file.getvalue()
    assert "a\x1b[2J" not in shown
    assert r"bad image runs/a\x1b[2J\r\n" in shown
