"""Trains teachers and a student: ``accelerate launch -m cbd_fast.train --config FILE [key=value ...]``."""

import sys

from cbd_fast.cli.command import run_command
from cbd_fast.cli.train import main

if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    run_command(main)
