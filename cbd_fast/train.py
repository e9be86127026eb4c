"""Trains teachers and a student: ``accelerate launch -m cbd_fast.train --config FILE [key=value ...]``."""

from importlib import import_module

from cbd_fast.cli.command import run_command

if __name__ == "__main__":
    # inside, as a signal may come while PyTorch is imported
    run_command(lambda: import_module("cbd_fast.cli.train").main())
