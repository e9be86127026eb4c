"""``--plugin FILE``: a user's own backbones, losses, metrics, sampling policies and sources.

Only the command line names such files, never a config, which may come from a stranger.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from cbd_fast.errors import InputError, first_line
from cbd_fast.files import user_path


def add_plugin_option(parser: argparse.ArgumentParser) -> None:
    """The option, for the help; ``load_plugins`` has taken it off the arguments before they are parsed."""
    parser.add_argument(
        "--plugin",
        type=user_path,
        action="append",
        metavar="FILE",
        help="Python file that registers backbones, losses, metrics, sampling policies or sources; may be repeated",
    )


def load_plugins(arguments: Sequence[str] | None = None) -> list[str]:
    """Runs every file that ``--plugin`` names, and returns the other arguments.

    Before a parser is made, as what a file registers is also what other options may name.

    Args:
        arguments: arguments of the command; by default those of this process.

    Raises:
        InputError: a file is missing, or cannot be run.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_plugin_option(parser)
    known, others = parser.parse_known_args(arguments)
    for path in known.plugin or ():
        load_plugin(path)
    return others


def load_plugin(path: Path) -> None:
    """Runs a Python file once per process."""
    name = f"cbd_fast_plugin_{path.resolve().as_posix().replace('/', '_').replace('.', '_')}"
    if name in sys.modules:
        return
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise InputError(f"--plugin {path}: must be a Python file (.py) that is there")
    module = module_from_spec(spec)
    sys.modules[name] = module  # where pickling and registries look for what it defines
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise InputError(f"--plugin {path}: cannot be run ({type(error).__name__}: {first_line(error)})") from error
