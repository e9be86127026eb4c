import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbd_fast.errors import InputError, Stopped, describe_os_error, first_line, is_of_environment, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Möwe, 海鸥 [red]", "Möwe, 海鸥 [red]"),
        ("a\x1b[2Jb\x07\n\r\t", r"a\x1b[2Jb\x07\n\r\t"),
        ("\x9b31m", r"\x9b31m"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("a\nb\udcff\x1b", r"a\nb\udcff\x1b"),
        (Exception("x\x00"), r"x\x00"),
    ],
)
def test_printable(text, shown):
    assert printable(text) == shown


@given(st.text(st.characters(exclude_categories=())))
def test_what_is_printable_stays_and_the_rest_is_text(text):
    shown = printable(text)
    assert shown.isprintable()
    assert printable(shown) == shown
    shown.encode()


def test_bytes_that_are_no_text_may_stay():
    assert printable("\udcff\x1b", keep_bytes=True) == "\udcff\\x1b"


def test_os_errors_name_the_file_and_what_is_missing(tmp_path):
    path = str(tmp_path / "a\nb")
    full = OSError(errno.ENOSPC, "No space left on device", path)
    assert describe_os_error(full).startswith(f"{tmp_path}/a\\nb: No space left on device (")
    assert describe_os_error(full).endswith(" MB left there)")
    assert "raise it with ulimit -n" in describe_os_error(OSError(errno.EMFILE, "Too many open files", path))
    assert describe_os_error(OSError("odd")) == "odd"


def test_what_users_can_mend():
    assert is_of_environment(OSError(errno.EROFS, ""))
    assert not is_of_environment(FileNotFoundError(errno.ENOENT, ""))
    assert not is_of_environment(OSError("odd"))


def test_stopped_is_what_notebooks_expect():
    stopped = Stopped(15)
    assert isinstance(stopped, KeyboardInterrupt)
    assert (stopped.signum, str(stopped)) == (15, "stopped by SIGTERM; give the same command again to go on")


def test_first_line():
    assert first_line(RuntimeError("[enforce fail]\nmore")) == "[enforce fail]"
    assert first_line(InputError()) == "InputError"
