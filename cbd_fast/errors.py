"""Errors whose messages are for users, and what is told of the errors of others."""

import re


class InputError(ValueError):
    """What the user gave cannot be used: the message says what is wrong, with the value, where, and what to do."""


class RunError(RuntimeError):
    """A run that began cannot go on (a diverged loss, too many bad images): the message says where and why."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without the place in a library's source that some begin with."""
    lines = str(error).strip().splitlines()
    return re.sub(r"^\w+, /\S+:\d+, ", "", lines[0]) if lines else type(error).__name__
