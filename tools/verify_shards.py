"""Checks shards, and marks bad images; installed, it is ``cbd-fast verify``."""

from cbd_fast.cli.command import run_command
from cbd_fast.cli.verify import main

if __name__ == "__main__":
    run_command(main)
