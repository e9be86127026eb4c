"""Cases one after the other in a process that may die; what went wrong is kept, with the file that did it."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

KINDS = {"index": 5, "manifest": 5, "tar": 4, "config": 4, "checkpoint": 2, "image": 5}  # and how many of 25 cases
CASE_SECONDS = 10  # a case takes milliseconds; more is a hang
MAX_GROWTH_BYTES = 700 << 20  # of this process's memory in a case: a manifest of 32 MB may take so much
MAX_ADDRESS_BYTES = 64 << 30
REPOSITORY = Path(__file__).parents[2]


def make_target(kind: str, folder: Path) -> Any:
    """The target of a kind; its valid files lie in the folder."""
    # PyTorch takes seconds to import, and not all of them need it
    from . import run_targets, shard_targets

    targets = {
        "index": shard_targets.IndexTarget,
        "manifest": shard_targets.ManifestTarget,
        "tar": shard_targets.TarTarget,
        "config": run_targets.ConfigTarget,
        "checkpoint": run_targets.CheckpointTarget,
    }
    return targets[kind](folder)


def shared_out(count: int, only: str | None) -> dict[str, int]:
    """Cases of each kind."""
    if only:
        return {only: count}
    return {kind: count * weight // sum(KINDS.values()) for kind, weight in KINDS.items()}


def fuzz(seed: int, count: int, only: str | None, work: Path, failures: Path) -> int:
    """Runs cases, prints what came out, and returns the number of failures.

    Args:
        seed: of all random numbers; a case is a function of it, its kind and its number.
        count: cases of all kinds together.
        only: the one kind to run, or None.
        work: an empty folder.
        failures: a folder to be made for the files that failed, if any do.
    """
    shares, failed, began = shared_out(count, only), Counter[str](), time.monotonic()
    others = {kind: number for kind, number in shares.items() if kind != "image"}
    cases = chain(_run_others(seed, others, work, failures), _run_images(seed, shares.get("image", 0), failures))
    for kind, case, reason in cases:
        failed[kind] += 1
        print(f"{kind} {case}: {reason}", flush=True)
    for kind, number in shares.items():
        print(f"{kind}: {number:,} cases, {failed[kind]} failures", flush=True)
    seconds = f"{time.monotonic() - began:.0f} s"
    kept = f", kept in {failures}" if failed else ""
    print(f"seed {seed}: {sum(shares.values()):,} cases, {failed.total()} failures{kept}, {seconds}", flush=True)
    return failed.total()


def _run_others(seed: int, shares: dict[str, int], work: Path, failures: Path) -> Iterator[tuple[str, int, str]]:
    """Kinds, numbers and reasons of the cases that failed; a process that dies is replaced by another."""
    cases = in_order(shares)
    position, position_file = 0, work / "position"
    while position < len(cases):
        command = [sys.executable, "-m", "tests.fuzz", "--worker", "--seed", str(seed), "--start", str(position)]
        command += ["--shares", json.dumps(shares), "--work", str(work / "files"), "--failures", str(failures)]
        position_file.unlink(missing_ok=True)
        with open(work / "log", "w+") as log:
            # its own group: what it has started ends with it
            process = subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=log, start_new_session=True)
            code = _wait(process, position_file)
            log.seek(0)
            lines = log.read().splitlines()
        yield from ((line["kind"], line["case"], line["reason"]) for line in map(_as_failure, lines) if line)
        if code == 0:
            return
        at = _read_position(position_file)
        if at < position:
            raise RuntimeError(f"the worker did not begin: {' '.join(lines)[-2000:]}")
        if code != EXIT_REPLACE:
            reason = f"the process died (signal {-code})" if code < 0 else f"the process ended with {code}"
            kind, case = cases[at]
            yield kind, case, f"{reason}: {' '.join(lines[-3:])[-500:]}"
            _keep(work / "files", failures / f"{kind}-{seed}-{case}", reason)
        position = at + 1


def in_order(shares: dict[str, int]) -> list[tuple[str, int]]:
    """Kinds and numbers of all cases."""
    return [(kind, case) for kind, number in shares.items() for case in range(number)]


def _run_images(seed: int, count: int, failures: Path) -> Iterator[tuple[str, int, str]]:
    """Images have processes of their own, as both decoders take seconds to begin."""
    if not count:
        return
    command = [sys.executable, "-m", "tests.fuzz.images", str(seed), str(count)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    before: list[str] = []  # a traceback, perhaps
    for line in done.stdout.splitlines():
        before.append(line)
        if failure := _as_failure(line):
            from .images import mutated_image

            folder = failures / f"image-{seed}-{failure['case']}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "image").write_bytes(mutated_image(np.random.default_rng([seed, failure["case"]])))
            reason = "\n".join([failure["reason"], *before[:-1]])[-1500:]
            (folder / "reason.txt").write_text(reason)
            yield "image", failure["case"], reason
            before.clear()
    if done.returncode > 1 or done.returncode < 0:
        yield "image", -1, f"exit code {done.returncode}: {(done.stdout + done.stderr)[-1500:]}"


EXIT_REPLACE = 77  # of a worker that has failed in a way that needs another process


def _wait(process: subprocess.Popen, position_file: Path) -> int:
    """Waits for the worker, and ends it where a case hangs inside a library."""
    last, since = -1, time.monotonic()
    while (code := process.poll()) is None:
        time.sleep(0.2)
        position = _read_position(position_file)
        if position != last:
            last, since = position, time.monotonic()
        elif time.monotonic() - since > 6 * CASE_SECONDS + 60:  # the first one waits for PyTorch
            os.killpg(process.pid, signal.SIGKILL)
            return process.wait()
    return code


def _read_position(path: Path) -> int:
    text = path.read_text() if path.exists() else ""
    return int(text) if text else -1


def _as_failure(line: str) -> dict[str, Any] | None:
    return json.loads(line.removeprefix("FAILED ")) if line.startswith("FAILED ") else None


def _keep(work: Path, path: Path, reason: str) -> None:
    """Keeps the changed files of a case."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "reason.txt").write_text(reason)
    if (work / "changed").exists():
        shutil.copytree(work / "changed", path, dirs_exist_ok=True)


def work_off(seed: int, shares: dict[str, int], start: int, work: Path, failures: Path) -> None:
    """The worker: makes and checks cases, and prints a line for each that fails.

    Args:
        seed: of all random numbers.
        shares: number of cases of each kind.
        start: position of the first case among all of them.
        work: a folder; the valid files are made in it by the first worker.
        failures: where files that failed are kept.
    """
    from .shard_targets import make_shards

    valid, now = work / "valid", work / "now"
    if not valid.exists():
        valid.mkdir(parents=True)
        make_shards(valid)
        for kind in shares:
            make_target(kind, valid)
        shutil.copytree(valid, now)
    targets = {kind: make_target(kind, now) for kind in shares}
    there = sorted(now.iterdir())
    signal.signal(signal.SIGALRM, _time_out)
    resource.setrlimit(resource.RLIMIT_AS, (MAX_ADDRESS_BYTES, MAX_ADDRESS_BYTES))
    kinds = sorted(KINDS)
    for position, (kind, case) in list(enumerate(in_order(shares)))[start:]:
        (work.parent / "position").write_text(str(position))
        target = targets[kind]
        files = target.mutate(np.random.default_rng([seed, kinds.index(kind), case]))
        _replace(work / "changed", files)
        for name, data in files.items():
            (target.folder / name).write_bytes(data)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        reason, is_fatal = _run(target, case), False
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - peak
        if grown > MAX_GROWTH_BYTES:
            reason, is_fatal = f"memory grew by {grown:,} bytes; {reason}", True
        if sorted(now.iterdir()) != there or len(list(work.iterdir())) != 3:
            reason, is_fatal = f"something beside the folder was changed; {reason}", True
        if reason:
            print("FAILED " + json.dumps({"kind": kind, "case": case, "reason": reason[-1500:]}), flush=True)
            _keep(work, failures / f"{kind}-{seed}-{case}", reason)
        _restore(target)
        if is_fatal:
            sys.exit(EXIT_REPLACE)


def _run(target: Any, case: int) -> str:
    """What is wrong with a case; empty if nothing is."""
    signal.alarm(CASE_SECONDS)
    try:
        target.check(case)
    except TimeoutError:
        return f"took more than {CASE_SECONDS} s: {traceback.format_exc()}"
    except Exception:
        return traceback.format_exc()
    finally:
        signal.alarm(0)
    return ""


def _time_out(signum: int, frame: object) -> None:
    raise TimeoutError


def _replace(folder: Path, files: dict[str, bytes]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def _restore(target: Any) -> None:
    """Makes the folder what it was: the case may have written into it."""
    there = {str(path.relative_to(target.folder)) for path in target.folder.rglob("*") if path.is_file()}
    for name in there - target.files.keys():
        (target.folder / name).unlink()
    for name, data in target.files.items():
        path = target.folder / name
        if not path.is_file() or path.stat().st_size != len(data) or path.read_bytes() != data:
            path.write_bytes(data)
