"""Mutated files of all kinds, read by all that reads them: ``python -m tests.fuzz --seed N --count N --only KIND``.

A case is a function of the seed, its kind and its number. Cases run in another process, so that a crash is seen; files
that failed are kept, with the reason. The exit code is 1 if any did.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from .runner import KINDS, fuzz, work_off


def main() -> int:
    """Runs what the command line asks for; the number of failures, at most 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="default: the time")
    parser.add_argument("--count", type=int, default=25_000, help="cases of all kinds together")
    parser.add_argument("--only", choices=tuple(KINDS), help="one kind")
    parser.add_argument("--failures", type=Path, default=Path("fuzz-failures"), help="where files that failed are kept")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--start", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--shares", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    failures = arguments.failures.absolute()
    if arguments.worker:
        work_off(arguments.seed, arguments.shares, arguments.start, arguments.work, failures)
        return 0
    print(f"seed {arguments.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="cbd_fast-fuzz-") as work:
        return min(1, fuzz(arguments.seed, arguments.count, arguments.only, Path(work), failures))


if __name__ == "__main__":
    sys.exit(main())
