"""The one exception for bad input, and the exit codes of every command."""

import os
import re
import sys
from collections.abc import Callable
from typing import NoReturn

EXIT_DONE, EXIT_FAILED, EXIT_BAD_INPUT = 0, 1, 2


class InputError(ValueError):
    """What the user gave cannot be used: the message says what is wrong, with the value, where, and what to do."""


class RunError(RuntimeError):
    """A run that began cannot go on (a diverged loss, too many bad images): the message says where and why."""


def first_line(error: Exception) -> str:
    """The first line of an error's message, without the place in a library's source that some begin with."""
    lines = str(error).strip().splitlines()
    return re.sub(r"^\w+, /\S+:\d+, ", "", lines[0]) if lines else type(error).__name__


def run_command(main: Callable[[], None]) -> NoReturn:
    """Runs a command line's ``main`` and exits: 0 done, 1 failed, 2 bad input.

    Only ``InputError`` and ``RunError`` become one-line messages; anything else is a defect of ours and keeps its
    traceback (Python then exits with 1).
    """
    try:
        main()
    except InputError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # every process on a machine finds the same
            print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    except RunError as error:
        print(f"failed: {error}", file=sys.stderr)
        sys.exit(EXIT_FAILED)
    except KeyboardInterrupt:
        print("failed: interrupted; the same command goes on from where it can", file=sys.stderr)
        sys.exit(EXIT_FAILED)
    sys.exit(EXIT_DONE)
