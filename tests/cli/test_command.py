import pytest

from cbd_fast.cli.command import run_command
from cbd_fast.errors import InputError, RunError


def _raise(error):
    raise error


@pytest.mark.parametrize(
    ("main", "code", "message"),
    [
        (lambda: None, 0, ""),
        (lambda: _raise(RunError("loss is nan")), 1, "failed: loss is nan\n"),
        (lambda: _raise(InputError("no such folder")), 2, "error: no such folder\n"),
    ],
)
def test_exit_codes(main, code, message, capsys):
    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code == code
    assert capsys.readouterr().err == message


def test_defects_keep_their_traceback():
    with pytest.raises(KeyError):
        run_command(lambda: _raise(KeyError("ours")))
