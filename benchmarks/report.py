"""What all benchmarks report: the machine, the versions, a table and a JSON file."""

import json
import platform
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from cbd_fast.resources import num_cores_of_all

WIDTH = 160


def machine_and_versions(packages: Sequence[str]) -> dict[str, Any]:
    """Where and with what something was measured."""
    return {
        "date": date.today().isoformat(),
        "processor": processor(),
        "cores": num_cores_of_all(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
    }


def print_table(rows: Sequence[dict[str, Any]], title: str = "", *, tells_machine: bool = True) -> None:
    """Prints rows of equal keys, and the machine."""
    table = Table(title=title or None)
    for number, column in enumerate(rows[0]):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*(f"{value:,}" if isinstance(value, int) else str(value) for value in row.values()))
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH  # a file has room for every column
    console.print(table)
    if tells_machine:
        machine = machine_and_versions(())
        console.print("{processor}, {cores} cores, GPU: {gpu}, {date}".format(**machine), highlight=False)


def write_json(path: Path | None, results: dict[str, Any]) -> None:
    """Writes results where a file was asked for."""
    if path is not None:
        path.write_text(json.dumps(results, indent=1) + "\n")


def processor() -> str:
    """Name of the processor."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
