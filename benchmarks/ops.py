"""Op level: state updates a second at growing lengths, forward and backward, and the linearity of time and memory."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import torch

import statescan as ss
from benchmarks.timing import interleaved

Row = dict[str, Any]


def selective(quick: bool) -> list[Row]:
    """selective_scan in the shape of a mamba-130m layer."""
    rows = []
    for length in (64, 512) if quick else (64, 512, 2048, 16384):
        torch.manual_seed(0)
        width, states = 1536, 16
        x, z = torch.randn(2, 1, length, width)
        delta = torch.randn(1, length, width) - 3
        A = -torch.arange(1, states + 1.0).repeat(width, 1)
        B, C = torch.randn(2, 1, length, states)
        D = torch.ones(width)
        inputs = [t.requires_grad_() for t in (x, delta, A, B, C, D, z)]

        def forward(args: list[torch.Tensor] = inputs) -> torch.Tensor:
            x, delta, A, B, C, D, z = args
            return ss.ops.selective_scan(x, delta, A, B, C, D, z=z, delta_softplus=True)  # type: ignore[return-value]

        def both(args: list[torch.Tensor] = inputs) -> None:
            torch.autograd.grad(forward(args).sum(), args)

        def inference(args: list[torch.Tensor] = inputs) -> None:
            with torch.no_grad():
                forward(args)

        updates = length * width * states
        for name in ("native", "portable"):
            if name == "portable" and length > 2048:
                continue
            with ss.implementation(name):
                timing = interleaved({"forward": inference, "forward+backward": both}, repeats=5, budget=20)
            rows.append(
                {
                    "op": "selective_scan",
                    "implementation": name,
                    "L": length,
                    "forward, G updates/s": updates / timing["forward"].median / 1e9,
                    "forward+backward, G updates/s": updates / timing["forward+backward"].median / 1e9,
                }
            )
    return rows


def scaling(quick: bool) -> list[Row]:
    """Time a token and peak memory from 16k to 1M positions, state handed from chunk to chunk (each length in a process of its own)."""
    rows = []
    for length in (16_384, 131_072) if quick else (16_384, 65_536, 262_144, 1_048_576):
        out = subprocess.run(
            [sys.executable, "-m", "benchmarks.ops", str(length)], capture_output=True, text=True, check=True
        ).stdout.split()
        rows.append({"L": length, "ns a token": float(out[0]) / length * 1e9, "peak memory, MiB": float(out[1])})
    return rows


def _long(length: int, chunk: int = 4096) -> None:
    import time

    torch.manual_seed(0)
    width, states = 128, 16
    A, D = -torch.arange(1, states + 1.0).repeat(width, 1), torch.ones(width)
    state = torch.zeros(1, width, states)
    seconds = 0.0
    with torch.no_grad():
        for i in range(-1, length // chunk):  # the first round is warm-up
            x, delta = torch.randn(2, 1, chunk, width)
            B, C = torch.randn(2, 1, chunk, states)
            start = time.perf_counter()
            _, state = ss.ops.selective_scan(x, delta, A, B, C, D, delta_softplus=True, state=state, return_state=True)
            seconds += (time.perf_counter() - start) * (i >= 0)
    with open("/proc/self/status", encoding="utf-8") as file:  # getrusage would report the parent's peak: it survives exec
        peak = next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
    print(seconds, peak / 1024)


if __name__ == "__main__":
    _long(int(sys.argv[1]))
