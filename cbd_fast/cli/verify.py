"""``cbd-fast verify DIR``: checks shards, and marks bad images."""

import argparse
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

from rich.console import Console

from cbd_fast.cli.shard_options import positive_int
from cbd_fast.errors import InputError, RunError, printable
from cbd_fast.files import user_path
from cbd_fast.folder_lock import locked_folder
from cbd_fast.resources import num_cores_of_all
from cbd_fast.shards.manifest import read_manifest
from cbd_fast.shards.verify import SplitFindings, quarantine, verify_split
from cbd_fast.ui.console import make_bars, make_console

DESCRIPTION = """\
Checks shards: sizes and index against the tars, or with --full every byte
and every image. With --quarantine the loader passes over bad images.

{command} shards/NAME
{command} shards/NAME --full
{command} shards/NAME --quarantine

Exit codes: 0 all is well, or bad images were marked; 1 something is not;
2 these are not shards.
"""
NUM_SHOWN = 20


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Checks every split and prints its problems.

    Args:
        argv: arguments of the command; by default those of this process.
        prog: name of the command, for its help.
    """
    arguments = make_parser(prog).parse_args(argv)
    console = make_console()
    read_manifest(arguments.folder)  # says it where there are no shards, before a lock is made
    with locked_folder(arguments.folder) if arguments.quarantine else nullcontext():
        _run(arguments, console)


def _run(arguments: argparse.Namespace, console: Console) -> None:
    findings = _verify(arguments, console)
    lines = [line for split, each in findings.items() for line in describe(split, each)]
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
    num_bad = sum(len(each.bad) for each in findings.values())
    if arguments.quarantine:
        try:
            manifest = quarantine(arguments.folder, findings)
        except OSError as error:
            raise RunError(f"{arguments.folder}: cannot be written ({error}); nothing was marked") from error
        marked = {split: record.num_quarantined for split, record in manifest.splits.items()}
        console.print(f"quarantined: {', '.join(f'{split} {number:,}' for split, number in marked.items())}")
        if num_lasting := sum(each.num_lasting for each in findings.values()):
            raise RunError(f"{arguments.folder}: {num_lasting} problems that no quarantine repairs; see above")
    elif num_bad or any(each.problems or each.lasting_problems for each in findings.values()):
        raise RunError(f"{arguments.folder}: these shards are not as they were made; see above")


def _verify(arguments: argparse.Namespace, console: Console) -> dict[str, SplitFindings]:
    """Findings of every split, all of the same manifest."""
    while True:
        manifest = read_manifest(arguments.folder)
        try:
            findings = {}
            with make_bars(console) as bars:
                for split, record in manifest.splits.items():
                    task = bars.add_task(split, total=record.num_images, rate="")
                    findings[split] = verify_split(
                        arguments.folder,
                        manifest,
                        split,
                        is_full=arguments.full or arguments.quarantine,
                        num_workers=arguments.workers,
                        on_images=partial(bars.advance, task),
                    )
            return findings
        except InputError:
            if read_manifest(arguments.folder) == manifest:
                raise
            # another command has quarantined images meanwhile, and index and manifest are new


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The command line; errors in it end the program with exit code 2.

    Args:
        prog: name of the command, for its help; by default that of tools/verify_shards.py.
    """
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog=prog,
        description=DESCRIPTION.format(command=prog or "python tools/verify_shards.py"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=user_path, metavar="DIR", help="a folder of shards")
    parser.add_argument("--full", action="store_true", help="sha256 of shards; crc32 and decoding of every image")
    parser.add_argument("--quarantine", action="store_true", help="mark bad images in the index (implies --full)")
    parser.add_argument("--workers", type=positive_int, default=num_cores_of_all(), metavar="N", help="threads")
    return parser


def describe(split: str, findings: SplitFindings) -> list[str]:
    """What a verification says of a split, as lines."""
    lines = [f"{split}: {len(findings.index):,} images in {len(findings.record.shards):,} shards"]
    if number := findings.record.num_quarantined:
        lines.append(f"  {number:,} are quarantined, of which {len(findings.good):,} can be used again")
    problems = [*findings.lasting_problems, *findings.problems, *(f"{bad.name}: {bad.reason}" for bad in findings.bad)]
    lines += [f"  {printable(problem)}" for problem in problems[:NUM_SHOWN]]
    if len(problems) > NUM_SHOWN:
        lines.append(f"  and {len(problems) - NUM_SHOWN:,} more")
    return lines if problems else [*lines, "  no problems"]
