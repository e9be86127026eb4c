"""How every command ends: exit codes, and errors in one line."""

import sys
from collections.abc import Callable
from typing import NoReturn

from cbd_fast.errors import InputError, RunError
from cbd_fast.processes import env_local_rank

EXIT_DONE, EXIT_FAILED, EXIT_BAD_INPUT = 0, 1, 2


def run_command(main: Callable[[], None]) -> NoReturn:
    """Runs a command line's ``main`` and exits: 0 done, 1 failed, 2 bad input.

    Only ``InputError`` and ``RunError`` become one-line messages; anything else is a defect of ours and keeps its
    traceback (Python then exits with 1).
    """
    try:
        main()
    except InputError as error:
        if env_local_rank() == 0:  # every process on a machine finds the same
            print(f"error: {_on_one_line(error)}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    except RunError as error:
        print(f"failed: {_on_one_line(error)}", file=sys.stderr)
        sys.exit(EXIT_FAILED)
    except KeyboardInterrupt:
        print("failed: interrupted; the same command goes on from where it can", file=sys.stderr)
        sys.exit(EXIT_FAILED)
    sys.exit(EXIT_DONE)


def _on_one_line(error: Exception) -> str:
    """What others say of bad input, such as a YAML parser, has lines."""
    return " ".join(line.strip() for line in str(error).splitlines())
