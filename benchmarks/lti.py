"""Time-invariant layers against the usual way, which holds a tensor of (width, states, length): time and memory of kernels and layers."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import statescan as ss
from benchmarks.models import Options
from benchmarks.peers.serve import peak_memory
from benchmarks.timing import Timing, interleaved, timed
from statescan.mixers.lti import LTIMixer
from statescan.mixers.s4 import S4, LowRankSystem
from statescan.mixers.s4d import S4D
from statescan.ops.fft_conv import fft_conv
from statescan.protocols import CausalMixer

Row = dict[str, Any]

BATCH, WIDTH, LENGTH, STATES = 8, 256, 4096, 64
NAIVE = WIDTH * STATES * LENGTH * 4 / 2**20
"""MiB of one (width, states, length) tensor of floats."""


def naive_s4d(layer: S4D, length: int) -> Tensor:
    """The powers of every mode at every position, in one tensor, as single-precision projects do."""
    log_decay, inputs, readout = layer.system()
    powers = torch.exp(log_decay.to(torch.complex64).unsqueeze(-1) * torch.arange(length))
    return ((readout * inputs).to(torch.complex64).unsqueeze(-1) * powers).sum(1).real


def naive_s4(layer: S4, length: int) -> Tensor:
    """Cauchy products at the roots of unity with a (width, modes, length / 2) tensor for each pair of vectors."""
    system = layer.system()
    assert isinstance(system, LowRankSystem)
    c, d, p, q, b = (t.to(torch.complex64) for t in (system.c / 2, system.d, system.p[:, 0], system.q[:, 0] / 2, system.b))
    w = torch.exp(-2j * torch.pi / length * torch.arange(length // 2 + 1)).to(torch.complex64)
    below, other = 1 - w * d.unsqueeze(-1), 1 - w * d.conj().unsqueeze(-1)
    s = [((x * y).unsqueeze(-1) / below + (x * y).conj().unsqueeze(-1) / other).sum(1) for x in (c, q) for y in (b, p)]
    return torch.fft.irfft(s[0] - w * s[1] / (1 + w * s[3]) * s[2], length)


def run(options: Options) -> list[Row]:
    """A row for each system: kernel memory, and the layer's time and memory, beside the naive layer's; forward and backward."""
    width, length = (WIDTH, LENGTH) if not options.quick else (64, 1024)
    rows: list[Row] = []
    naive: list[tuple[Callable[[int, int], S4 | S4D], Callable[[Any, int], Tensor]]] = [(S4, naive_s4), (S4D, naive_s4d)]
    for make, kernel_of in naive:
        torch.manual_seed(0)
        layer = make(width, STATES)
        x, weights = torch.randn(BATCH, length, width), torch.randn(width, length, dtype=torch.float64)

        calls: dict[str, Callable[[], Any]] = {
            "ours": partial(_ours, layer, x),
            "naive": partial(_naive, layer, x, kernel_of),
            "kernel": partial(_kernel, layer, length, weights),
        }
        for call in calls.values():
            call()  # the first one imports things
        memory = {name: grown(call) for name, call in calls.items()}
        timings = interleaved({name: timed(calls[name]) for name in ("ours", "naive")}, 3)
        mine, other = timings["ours"], timings["naive"]
        assert isinstance(mine, Timing)
        assert isinstance(other, Timing)
        rows.append(
            {
                "layer": type(layer).__name__,
                "ours, ms": mine.low * 1e3,
                "naive, ms": other.low * 1e3,
                "times faster": other.low / mine.low,
                "ours, MiB": memory["ours"],
                "naive, MiB": memory["naive"],
                "of its memory": memory["ours"] / memory["naive"],
                "kernel, MiB": memory["kernel"],
                "of (H, N, L)": memory["kernel"] / (NAIVE * width * length / WIDTH / LENGTH),
            }
        )
    return rows


def _ours(layer: LTIMixer, x: Tensor) -> None:
    layer.zero_grad()
    layer(x).sum().backward()


def _naive(layer: LTIMixer, x: Tensor, kernel_of: Callable[[Any, int], Tensor]) -> None:
    layer.zero_grad()
    layer.finish(fft_conv(x, kernel_of(layer, x.shape[1])) + layer.D * x).sum().backward()


def _kernel(layer: LTIMixer, length: int, weights: Tensor) -> None:
    layer.zero_grad()
    layer.kernel(length).backward(weights)


def _steps(layer: CausalMixer, x: Tensor, state: Any) -> None:
    for _ in range(10):
        layer.step(x, state)


def steps(options: Options) -> list[Row]:
    """Microseconds a step after prompts of different lengths: the state is all there is."""
    rows: list[Row] = []
    for name in ("S4", "S4D", "S5", "H3", "LSSL"):
        layer: CausalMixer = ss.Spec(name, d_state=STATES)(64)
        x = torch.randn(1, 64)
        with torch.no_grad():
            calls = {}
            for length in (16, 1024):
                _, state = layer.scan(torch.randn(1, length, 64))
                calls[str(length)] = timed(partial(_steps, layer, x, state))
            timings = interleaved(calls, 5)
        rows.append({"layer": name} | {f"after {key}, us": t.low * 1e5 for key, t in timings.items() if isinstance(t, Timing)})
    return rows


def grown(call: Callable[[], Any]) -> float:
    """By how many MiB the process grew at its peak."""
    gc.collect()
    before = peak_memory(reset=True)
    call()
    after = peak_memory()
    return float("nan") if before is None or after is None else after - before
