"""How every command ends: exit codes, signals, and errors in one line."""

import io
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from cbd_fast.errors import (
    AFTER_MENDING,
    InputError,
    RunError,
    Stopped,
    describe_os_error,
    is_of_environment,
    printable,
)
from cbd_fast.processes import env_local_rank
from cbd_fast.tell_once import what_to_tell

EXIT_DONE, EXIT_FAILED, EXIT_BAD_INPUT = 0, 1, 2
EXIT_SIGNAL = 128  # and the signal's number
STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP)  # beside SIGINT, which is Python's KeyboardInterrupt


def run_command(main: Callable[[], None]) -> NoReturn:
    """Runs a command line's ``main`` and exits: 0 done, 1 failed, 2 bad input, 128 + n ended by signal n.

    Only ``InputError``, ``RunError``, and what the machine lacks (a full disk) become one-line messages; anything else
    is a defect of ours and keeps its traceback (Python then exits with 1).
    """
    prepare_streams()
    for signum in STOP_SIGNALS:
        if signal.getsignal(signum) is signal.SIG_DFL:  # nohup has SIGHUP ignored
            signal.signal(signum, _stop)
    try:
        _run(main)
    finally:  # from here on there is nothing that a signal could not simply end
        for signum in STOP_SIGNALS:
            if signal.getsignal(signum) is _stop:
                signal.signal(signum, signal.SIG_DFL)


def _run(main: Callable[[], None]) -> NoReturn:
    try:
        main()
    except InputError as error:
        _tell("error:", str(error))
        sys.exit(EXIT_BAD_INPUT)
    except RunError as error:
        _tell("failed:", str(error))
        sys.exit(EXIT_FAILED)
    except KeyboardInterrupt as interrupt:
        stopped = interrupt if isinstance(interrupt, Stopped) else Stopped(signal.SIGINT)
        if env_local_rank() == 0:
            print(_on_one_line(str(stopped)), file=sys.stderr)
        sys.exit(EXIT_SIGNAL + stopped.signum)
    except BrokenPipeError:
        # whoever read the output has gone, as head does; what is still in the buffer must not fail again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_SIGNAL + signal.SIGPIPE)
    except OSError as error:
        if not is_of_environment(error):
            raise
        _tell("failed:", f"{describe_os_error(error)}; {AFTER_MENDING}")
        sys.exit(EXIT_FAILED)
    sys.exit(EXIT_DONE)


def prepare_streams() -> None:
    """Has every line appear at once, in a pipe too, and a character that the terminal does not know as an escape."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True, errors="backslashreplace")


def _stop(signum: int, frame: FrameType | None) -> NoReturn:
    raise Stopped(signum)


def _tell(kind: str, message: str) -> None:
    """Tells the person why a command has failed, once for all of its processes."""
    if (told := what_to_tell(message)) is not None:
        print(kind, _on_one_line(told), file=sys.stderr)


def _on_one_line(message: str) -> str:
    """What others say of bad input, such as a YAML parser, has lines."""
    return printable(" ".join(line.strip() for line in message.splitlines()))
