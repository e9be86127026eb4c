"""The one exception for bad input, and the exit codes of every command."""

import re

EXIT_DONE, EXIT_FAILED, EXIT_BAD_INPUT = 0, 1, 2


class InputError(ValueError):
    """What the user gave cannot be used: the message says what is wrong, with the value, where, and what to do."""


class RunError(RuntimeError):
    """A run that began cannot go on (a diverged loss, too many bad images): the message says where and why."""


def first_line(error: Exception) -> str:
    """The first line of an error's message, without the place in a library's source that some begin with."""
    lines = str(error).strip().splitlines()
    return re.sub(r"^\w+, /\S+:\d+, ", "", lines[0]) if lines else type(error).__name__
