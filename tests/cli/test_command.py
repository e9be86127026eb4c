import errno
import io
import os
import signal
import sys
from contextlib import contextmanager

import pytest

from cbd_fast.cli.command import run_command
from cbd_fast.errors import InputError, RunError, Stopped


def _raise(error):
    raise error


@pytest.fixture(autouse=True)
def _signals_as_before():
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.mark.parametrize(
    ("main", "code", "message"),
    [
        (lambda: None, 0, ""),
        (lambda: _raise(RunError("loss is nan")), 1, "failed: loss is nan\n"),
        (lambda: _raise(InputError("no such folder")), 2, "error: no such folder\n"),
        (lambda: _raise(InputError("class 'a\x1b[2Jb'\nis bad")), 2, "error: class 'a\\x1b[2Jb' is bad\n"),
        (lambda: _raise(KeyboardInterrupt()), 130, "stopped by SIGINT; give the same command again to go on\n"),
        (lambda: _raise(Stopped(signal.SIGUSR1, "at step 5")), 138, "stopped by SIGUSR1; at step 5\n"),
        (
            lambda: os.kill(os.getpid(), signal.SIGTERM),
            143,
            "stopped by SIGTERM; give the same command again to go on\n",
        ),
        (
            lambda: _raise(PermissionError(errno.EACCES, "Permission denied", "/out/a\nb")),
            1,
            "failed: /out/a\\nb: Permission denied; when that is mended, give the same command again\n",
        ),
    ],
)
def test_exit_codes(main, code, message, capsys):
    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code == code
    assert capsys.readouterr().err == message


def test_a_signal_that_is_ignored_stays_ignored():
    """As nohup has it."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: os.kill(os.getpid(), signal.SIGHUP))
    assert ended.value.code == 0


def test_a_signal_while_a_command_exits_is_no_traceback(capsys):
    """It would be raised out of whatever Python does at the end."""
    with pytest.raises(SystemExit):
        run_command(lambda: _raise(RunError("loss is nan")))
    assert signal.getsignal(signal.SIGTERM) is signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


@pytest.mark.parametrize("error", [KeyError("ours"), FileNotFoundError(errno.ENOENT, "No such file", "a")])
def test_defects_keep_their_traceback(error):
    with pytest.raises(type(error)):
        run_command(lambda: _raise(error))


@contextmanager
def _output(monkeypatch, encoding):
    raw = io.BytesIO()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(raw, encoding=encoding))
    yield raw


def test_no_character_ends_a_command(monkeypatch):
    """Where the locale is C, or a name is no UTF-8."""
    with _output(monkeypatch, "ascii") as raw, pytest.raises(SystemExit) as ended:
        run_command(lambda: print("Möwe", "\udcff"))
    assert ended.value.code == 0
    assert raw.getvalue() == b"M\\xf6we \\udcff\n"


def test_an_error_names_what_cannot_be_printed(monkeypatch):
    with _output(monkeypatch, "ascii") as raw, pytest.raises(SystemExit):
        run_command(lambda: _raise(InputError("class Möwe")))
    assert raw.getvalue() == b"error: class M\\xf6we\n"
