"""Accuracies of finished runs: models that differ only in their seeds are one row, with mean and spread.

    python benchmarks/accuracy.py runs/cifar100_lt_r32*

Each model of a run counts, teachers too; one that stands in several runs, as its folder was copied, counts once.
"""

import argparse
import copy
import json
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from report import print_table, write_json

from cbd_fast.cli.command import run_command
from cbd_fast.errors import InputError
from cbd_fast.training.finished import read_result
from cbd_fast.ui.dashboard import duration

METRICS = ("top1", "per_class_mean", "many", "medium", "few")


def main() -> None:
    """Prints a table of all models below the given folders."""
    arguments = parse_arguments()
    models = finished_models(arguments.runs)
    alike = groups(models)
    kinds = names([without_seeds(group[0]["identity"]) for group in alike])
    rows = [{"model": kind} | summarized(group) for kind, group in zip(kinds, alike, strict=True)]
    # the machine on which they were trained is not known here
    print_table(rows, "accuracy in percent: mean and sample standard deviation over seeds", tells_machine=False)
    write_json(arguments.out, {"rows": rows})


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the rows there, as JSON")
    return parser.parse_args()


def finished_models(runs: Iterable[Path]) -> list[dict[str, Any]]:
    """Results of the finished models of these runs, each once, teachers first.

    Raises:
        InputError: a folder holds no finished model.
    """
    found: dict[str, dict[str, Any]] = {}
    for run in runs:
        folders = [*sorted(run.glob("teacher-*")), run / "student"]
        finished = [result for folder in folders if (result := read_result(folder))]
        results = [result.model_dump(mode="json") for result in finished]
        if not results:
            raise InputError(f"{run}: holds no finished model")
        for numbers in results:
            found.setdefault(json.dumps(numbers["identity"]), numbers)
    return sorted(found.values(), key=lambda result: "stage_two.alpha" in result["identity"])


def groups(models: Iterable[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Models that differ only in their seeds, together."""
    alike: dict[str, list[dict[str, Any]]] = {}
    for model in models:
        alike.setdefault(json.dumps(without_seeds(model["identity"])), []).append(model)
    return list(alike.values())


def names(identities: list[dict[str, Any]]) -> list[str]:
    """What kinds of models these are; of the same kind, in which settings they differ."""
    kinds = [in_words(identity) for identity in identities]
    told = []
    for kind, identity in zip(kinds, identities, strict=True):
        others = [other for name, other in zip(kinds, identities, strict=True) if name == kind]
        differing = [name for name in identity if any(other.get(name) != identity[name] for other in others)]
        told.append("; ".join([kind, *(f"{name} {identity[name]}" for name in differing)]))
    return told


def without_seeds(identity: dict[str, Any]) -> dict[str, Any]:
    """What a model depends on besides chance."""
    rest = copy.deepcopy(identity)
    for name in ("seed", "stage_two.seed"):
        rest.pop(name, None)
    for teacher in rest["stage_one.teachers"]:
        del teacher["seed"]
    return rest


def summarized(group: list[dict[str, Any]]) -> dict[str, Any]:
    """The numbers of a row."""
    row: dict[str, Any] = {"seeds": len(group)}
    for metric in METRICS:
        values = [model["metrics"][metric] for model in group]
        row[metric] = "-" if None in values else f"{mean(values):.2f}"
        if len(values) > 1 and None not in values:
            row[metric] += f" ± {stdev(values):.2f}"
    return row | {"time each": duration(mean(model["seconds"] for model in group))}


def in_words(identity: dict[str, Any]) -> str:
    """What kind of model it is."""
    backbone, teachers = identity["model.backbone"], identity["stage_one.teachers"]
    if "stage_two.alpha" not in identity:
        jitter = teachers[0]["color_jitter"]
        return f"{backbone}, teacher, {identity['stage_one.sampling']} sampling" + (
            f", colour jitter {jitter:g}" if jitter else ""
        )
    sampling = f"{identity['stage_two.sampling']} sampling"
    if not teachers or not identity["stage_two.alpha"]:
        return f"{backbone}, {sampling}, no distillation"
    return f"{backbone}, student of {len(teachers)} teacher{'s' if len(teachers) > 1 else ''}, {sampling}"


if __name__ == "__main__":
    run_command(main)
