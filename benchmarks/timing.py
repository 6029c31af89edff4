"""Honest timing: warm-up, interleaved repetitions, medians with spread."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import torch


class Timing(NamedTuple):
    """Seconds: median, fastest and slowest of the repetitions."""

    median: float
    low: float
    high: float
    repeats: int


def interleaved(calls: Mapping[str, Callable[[], Any]], repeats: int = 5, budget: float = 60.0) -> dict[str, Timing]:
    """Time several calls in turn, so that a noisy neighbour hits all of them: at least three times each, within a budget of seconds."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    spent = dict.fromkeys(calls, 0.0)
    for name, call in calls.items():
        start = time.perf_counter()
        call()
        spent[name] += time.perf_counter() - start
    for _ in range(repeats):
        for name, call in calls.items():
            if len(samples[name]) >= 3 and spent[name] > budget:
                continue
            start = time.perf_counter()
            call()
            samples[name].append(time.perf_counter() - start)
            spent[name] += samples[name][-1]
    return {name: Timing(statistics.median(s), min(s), max(s), len(s)) for name, s in samples.items()}


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    cpu = platform.processor()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            cpu = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), cpu)
    except OSError:
        pass
    packages = {}
    for name in ("torch", "transformers", "statescan"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "absent"
    return {
        "cpu": cpu,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **packages,
    }


def matmul_rate(m: int = 512, k: int = 768, n: int = 3072) -> float:
    """FLOP/s of a float32 product of the shape of a projection: the limit of prefill and training."""
    a, b = torch.randn(m, k), torch.randn(k, n)
    timing = interleaved({"mm": lambda: a @ b}, repeats=20)["mm"]
    return 2 * m * k * n / timing.median


def read_rate(megabytes: int = 256) -> float:
    """Bytes a second that one-row products with float32 weights read: the limit of decoding."""
    n = megabytes * 2**20 // 4 // 1024
    weight, x = torch.randn(n, 1024), torch.randn(1, 1024)
    timing = interleaved({"mv": lambda: torch.nn.functional.linear(x, weight)}, repeats=10)["mv"]
    return weight.numel() * 4 / timing.median
