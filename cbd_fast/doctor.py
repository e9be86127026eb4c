"""What limits training on this machine: ``python -m cbd_fast.doctor --shards DIR [--config FILE]``."""

from cbd_fast.cli.command import run_command
from cbd_fast.cli.doctor import main

if __name__ == "__main__":
    run_command(main)
