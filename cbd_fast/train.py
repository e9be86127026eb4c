"""Trains teachers and a student: ``accelerate launch -m cbd_fast.train --config FILE [key=value ...]``."""

from cbd_fast.cli.command import run_command
from cbd_fast.cli.train import main

if __name__ == "__main__":
    run_command(main)
