import subprocess
import sys

import pytest

from cbd_fast.cli.main import SUBCOMMANDS, main
from cbd_fast.version import __version__

COLUMNS, LINES = 80, 24


def run(*argv) -> int:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    return ended.value.code


def assert_fits_a_screen(text) -> None:
    lines = text.splitlines()
    assert len(lines) <= LINES
    assert max(map(len, lines)) <= COLUMNS


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_fits_a_screen(option, capsys):
    assert run(option) == 0
    text = capsys.readouterr().out
    assert_fits_a_screen(text)
    lines = text.splitlines()
    for name, meaning in SUBCOMMANDS.items():
        assert [line.split(maxsplit=1)[1] for line in lines if line.startswith(f"  {name} ")].count(meaning) == 1
    assert sum(line.startswith("  cbd-fast ") for line in lines) == 2  # the examples


def test_without_a_subcommand_it_shows_the_help(capsys):
    assert run() == 2
    shown = capsys.readouterr()
    assert (shown.out, shown.err.splitlines()[0]) == ("", "usage: cbd-fast SUBCOMMAND ...")


def test_version(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out == f"cbd-fast {__version__}\n"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("trian", "error: cbd-fast trian: no such subcommand; did you mean train?\n"),
        ("--verison", "error: cbd-fast --verison: no such option; did you mean --version?\n"),
        ("xyz", f"error: cbd-fast xyz: no such subcommand; it must be one of {', '.join(SUBCOMMANDS)}\n"),
    ],
)
def test_unknown_subcommands_are_refused(name, message, capsys):
    assert run(name) == 2
    assert capsys.readouterr().err == message


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_subcommand_has_help(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    assert run(name, "--help") == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: cbd-fast {name} ")
    if name in ("verify", "doctor", "predict"):  # the others have more options than fit
        assert_fits_a_screen(text)


def test_bad_input_of_a_subcommand_ends_with_2(tmp_path, capsys):
    assert run("doctor", "--shards", str(tmp_path), "--seconds", "0") == 2
    assert capsys.readouterr().err == "error: --seconds 0: must be above 0\n"


def test_help_and_version_need_no_torch():
    code = """
import sys
from cbd_fast.cli.main import run
run(["--help"])
run(["--version"])
print(sorted({"torch", "numpy", "accelerate", "nvidia", "rich"} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_entry_point_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "cbd_fast.cli.main", "--version"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, f"cbd-fast {__version__}\n")
