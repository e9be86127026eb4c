"""Checks shards: sizes and index against the tars, or with --full every byte and every image.

python tools/verify_shards.py shards/NAME
python tools/verify_shards.py shards/NAME --full
python tools/verify_shards.py shards/NAME --quarantine    # full, and marks bad images: the loader passes over them

Exit codes: 0 all is well, or bad images were marked; 1 something is not; 2 these are not shards.
"""

import argparse
import os
from functools import partial
from pathlib import Path

from cbd_fast.cli.command import run_command
from cbd_fast.cli.shard_options import positive_int
from cbd_fast.errors import RunError
from cbd_fast.shards.manifest import read_manifest
from cbd_fast.shards.verify import SplitFindings, quarantine, verify_split
from cbd_fast.ui.console import make_bars, make_console

NUM_SHOWN = 20


def main() -> None:
    """Parses the command line, checks every split, prints what was found."""
    arguments = parse_arguments()
    manifest = read_manifest(arguments.folder)
    console = make_console()
    findings: dict[str, SplitFindings] = {}
    with make_bars(console) as progress:
        for split, record in manifest.splits.items():
            task = progress.add_task(split, total=record.num_images, rate="")
            findings[split] = verify_split(
                arguments.folder,
                manifest,
                split,
                is_full=arguments.full or arguments.quarantine,
                num_workers=arguments.workers,
                on_images=partial(progress.advance, task),
            )
    lines = [line for split, found in findings.items() for line in describe(split, found)]
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
    num_bad = sum(len(found.bad) for found in findings.values())
    if arguments.quarantine:
        try:
            manifest = quarantine(arguments.folder, findings)
        except OSError as error:
            raise RunError(f"{arguments.folder}: cannot be written ({error}); nothing was marked") from error
        marked = {split: record.num_quarantined for split, record in manifest.splits.items()}
        console.print(f"quarantined: {', '.join(f'{split} {number:,}' for split, number in marked.items())}")
        if missing := [problem for found in findings.values() for problem in found.lasting_problems]:
            raise RunError(f"{arguments.folder}: {len(missing)} problems that no quarantine repairs; see above")
    elif num_bad or any(found.problems or found.lasting_problems for found in findings.values()):
        raise RunError(f"{arguments.folder}: these shards are not as they were made; see above")


def parse_arguments() -> argparse.Namespace:
    """The command line; errors in it end the program with exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR", help="a folder of shards")
    parser.add_argument("--full", action="store_true", help="sha256 of shards; crc32 and decoding of every image")
    parser.add_argument("--quarantine", action="store_true", help="mark bad images in the index (implies --full)")
    parser.add_argument(
        "--workers", type=positive_int, default=len(os.sched_getaffinity(0)), metavar="N", help="threads"
    )
    return parser.parse_args()


def describe(split: str, found: SplitFindings) -> list[str]:
    """What was found in a split, as lines."""
    lines = [f"{split}: {len(found.index):,} images in {len(found.record.shards):,} shards"]
    if number := found.record.num_quarantined:
        lines.append(f"  {number:,} are quarantined, of which {len(found.good):,} can be used again")
    problems = [*found.lasting_problems, *found.problems, *(f"{bad.name}: {bad.reason}" for bad in found.bad)]
    lines += [f"  {problem}" for problem in problems[:NUM_SHOWN]]
    if len(problems) > NUM_SHOWN:
        lines.append(f"  and {len(problems) - NUM_SHOWN:,} more")
    return lines if problems else [*lines, "  no problems"]


if __name__ == "__main__":
    run_command(main)
