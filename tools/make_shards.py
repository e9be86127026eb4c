"""Turns a dataset into WebDataset shards with an index by class; installed, it is ``cbd-fast shards``."""

from cbd_fast.cli.command import run_command
from cbd_fast.cli.shards import main

if __name__ == "__main__":
    run_command(main)
