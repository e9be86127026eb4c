import io

import pytest
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from cbd_fast.ui import console
from cbd_fast.ui.console import Rate, bar_of, make_bars, make_console


def test_a_bar_shows_how_many_and_how_fast(monkeypatch):
    now = iter([100.0] + [102.0] * 10)
    monkeypatch.setattr(console.time, "monotonic", lambda: next(now))
    terminal = Console(file=io.StringIO(), force_terminal=True, width=100)
    monkeypatch.setattr(console, "make_console", lambda **options: terminal)
    with bar_of("cached images") as on_progress:
        on_progress(300, 1000)
    shown = terminal.file.getvalue()
    assert all(part in shown for part in ("cached images", "300/1000", "150/s"))


def test_elsewhere_nothing_is_drawn(capsys):
    assert not make_console().is_terminal
    with bar_of("cached images") as on_progress:
        on_progress(3, 10)
    assert capsys.readouterr().out.strip() == ""
    file = Console(file=io.StringIO())
    with make_bars(file) as bars:
        bars.add_task("images", rate="")
    assert file.file.getvalue().strip() == ""


def test_a_function_may_take_the_place_of_the_bar():
    calls = []
    with bar_of("cached images", lambda done, total: calls.append((done, total))) as on_progress:
        on_progress(3, 10)
    assert calls == [(3, 10)]


def test_a_rate_counts_what_was_done_since(monkeypatch):
    now = iter([100.0, 100.1, 104.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(now))
    rate = Rate(1000)
    assert rate.describe(1001) == ""  # too early
    assert rate.describe(5000) == "1,000/s"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_names_from_outside_are_shown_and_not_obeyed(is_terminal):
    hostile = "a\x1b[2J\x9b1m\u202eb"
    table = Table(title=Text(hostile))
    table.add_column(Text(hostile))
    table.add_row(Text(hostile))
    console = make_console(file=io.StringIO(), width=60)
    console._force_terminal = is_terminal
    console.print(Panel(Group(table, Text(hostile, "yellow"))))
    console.print(f"line\n{hostile}", markup=False, soft_wrap=True)
    shown = console.file.getvalue()
    assert shown.count(r"a\x1b[2J\x9b1m\u202eb") == 3  # and in the cells, which are too narrow for it
    assert "\x1b[2J" not in shown
    assert not set("\x9b\u202e") & set(shown)
