"""Honest timing: warm-up, interleaved repetitions, medians with spread."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import torch

from benchmarks.peers.client import Absent

SLOW, SLOWEST = 6.0, 60.0
"""Seconds: a call that takes longer is made three times in all, its first one counted; once, if it takes longer than ``SLOWEST``."""


class Timing(NamedTuple):
    """Seconds: median, fastest and slowest of the repetitions."""

    median: float
    low: float
    high: float
    repeats: int


def interleaved(calls: Mapping[str, Callable[[], float]], repeats: int = 5) -> dict[str, Timing | Absent]:
    """Make several calls in turn, so that a noisy neighbour hits all of them; each returns its seconds, and the first one warms up."""
    samples: dict[str, list[float]] = {}
    absent: dict[str, Timing | Absent] = {}
    for name, call in calls.items():
        try:
            first = call()
        except Absent as reason:
            absent[name] = reason
        else:
            samples[name] = [first] if first > SLOW else []
    wanted = {name: repeats if not kept else 3 if kept[0] <= SLOWEST else 1 for name, kept in samples.items()}
    for _ in range(repeats):
        for name, kept in samples.items():
            if name not in absent and len(kept) < wanted[name]:
                try:
                    kept.append(calls[name]())
                except Absent as reason:
                    absent[name] = reason
    done = {name: Timing(statistics.median(s), min(s), max(s), len(s)) for name, s in samples.items() if name not in absent}
    return {name: done.get(name) or absent[name] for name in calls}


def timed(call: Callable[[], Any], least: float = 0.0) -> Callable[[], float]:
    """The call, returning its seconds; made again until ``least`` seconds have passed, and then their mean."""

    def run() -> float:
        start, count, passed = time.perf_counter(), 0, 0.0
        while not count or passed < least:
            call()
            count, passed = count + 1, time.perf_counter() - start
        return passed / count

    return run


def machine(threads: int) -> dict[str, Any]:
    """What the figures were measured on."""
    cpu = platform.processor()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            cpu = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), cpu)
    except OSError:
        pass
    packages = {}
    for name in ("torch", "transformers", "mambapy", "statescan"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "absent"
    return {
        "cpu": cpu,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": threads,
        "python": platform.python_version(),
        **packages,
    }
