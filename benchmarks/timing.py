"""Contestants timed in turn."""

import argparse
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch


def measured_rounds(
    contestants: Mapping[str, Callable[[], Any]], device: torch.device, arguments: argparse.Namespace
) -> dict[str, list[float]]:
    """Milliseconds of each contestant in each round, after one to warm up and to compile."""
    rounds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(arguments.rounds + 1):
        for name, contestant in contestants.items():
            milliseconds = measured(contestant, device, arguments.seconds)
            if number:
                rounds[name].append(milliseconds)
    return rounds


def measured(work: Callable[[], Any], device: torch.device, seconds: float) -> float:
    """Milliseconds of one call, of those that fit into some seconds after another one; at least one."""
    work()
    wait(device)
    at_once = 10 if device.type == "cuda" else 1  # a GPU is not waited for after each, as in training
    num_calls, began = 0, time.perf_counter()
    while num_calls == 0 or time.perf_counter() - began < seconds:
        for _ in range(at_once):
            work()
        wait(device)
        num_calls += at_once
    return 1000 * (time.perf_counter() - began) / num_calls


def wait(device: torch.device) -> None:
    """Returns when the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
