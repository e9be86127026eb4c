"""Indexes WebDataset shards that somebody else wrote; installed, it is ``cbd-fast index``."""

from cbd_fast.cli.command import run_command
from cbd_fast.cli.index import main

if __name__ == "__main__":
    run_command(main)
