"""One layer of width 256 in float32: time against the length, beside other layers of the same width and about as many parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import statescan as ss
from benchmarks.models import Options
from benchmarks.peers.baselines import Attention, turns
from benchmarks.timing import Timing, interleaved, timed

Row = dict[str, Any]

WIDTH = 256
LENGTHS = (64, 256, 1024, 4096, 16384, 65536)
BATCH = 32
PATIENCE = 1.5
"""Seconds: a participant whose next length would take longer, going by how its time has grown, stops."""


def participants() -> dict[str, nn.Module | str]:
    """Name -> a module (B, L, 256) -> (B, L, 256) or a tuple that begins with it; or why it is absent."""
    torch.manual_seed(0)
    everyone: dict[str, nn.Module | str] = {
        "Mamba": ss.Mamba(WIDTH),
        "Mamba2": ss.Mamba2(WIDTH),
        "LSTM (torch)": nn.LSTM(WIDTH, WIDTH, batch_first=True),
        "attention and MLP (torch, SDPA)": Block(),
    }
    try:
        from transformers import MambaConfig
        from transformers.models.mamba.modeling_mamba import MambaMixer
        from transformers.utils import logging

        logging.set_verbosity_error()
        everyone["Mamba (transformers)"] = MambaMixer(MambaConfig(hidden_size=WIDTH, num_hidden_layers=1), layer_idx=0)
    except ImportError:
        everyone["Mamba (transformers)"] = "absent: transformers is not installed: pip install 'transformers>=5'"
    try:
        from mambapy.mamba import MambaBlock
        from mambapy.mamba import MambaConfig as Config

        everyone["Mamba (mambapy)"] = MambaBlock(Config(d_model=WIDTH, n_layers=1))
    except ImportError:
        everyone["Mamba (mambapy)"] = "absent: mambapy is not installed: pip install mambapy"
    return everyone


class Block(nn.Module):
    """Attention and an MLP of one width: six squares of the width, as many as a Mamba layer has."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Attention(WIDTH, hidden=WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D)"""
        return self.block(x, turns(0, x.shape[1]))[0]


def run(options: Options) -> list[Row]:
    """A row for each participant, batch and length."""
    table: list[Row] = []
    everyone = participants()
    took: dict[tuple[str, int, int], float] = {}
    stopped: dict[str, str] = {}
    for batch, length in [(1, length) for length in (LENGTHS[:2] if options.quick else LENGTHS)] + [(BATCH, 64), (BATCH, 256)]:
        if length == LENGTHS[0]:  # what a batch will take is known from one row
            slow = {name: took.get((name, 1, length), 0.0) * batch for name in everyone if batch > 1}
            stopped = {name: f"absent: it would take about {time:.0f} s" for name, time in slow.items() if time > PATIENCE}
        calls: dict[str, Callable[[], float]] = {}
        for name, module in everyone.items():
            reason = module if isinstance(module, str) else stopped.get(name)
            if reason is not None:
                table.append({"B": batch, "L": length, "who": name, "note": reason})
            elif isinstance(module, nn.Module):
                calls[name] = timed(_forward(module, batch, length))
                calls[f"{name} backward"] = timed(_both(module, batch, length))
        timings = interleaved(calls, 3 if options.quick else 7)
        for name in everyone:
            one, both = timings.get(name), timings.get(f"{name} backward")
            if isinstance(one, Timing) and isinstance(both, Timing):
                table.append(
                    {
                        "B": batch,
                        "L": length,
                        "who": name,
                        "forward, ms": one.median * 1e3,
                        "low": one.low * 1e3,
                        "high": one.high * 1e3,
                        "repeats": one.repeats,
                        "with backward, ms": both.median * 1e3,
                        "backward low": both.low * 1e3,
                        "backward high": both.high * 1e3,
                    }
                )
                took[name, batch, length] = both.median
                growth = max(4.0, both.median / took.get((name, batch, length // 4), both.median))
                if both.median * growth > PATIENCE:
                    stopped[name] = f"absent: {length} positions with backward took {both.median:.1f} s"
    return table


def _forward(module: nn.Module, batch: int, length: int) -> Callable[[], None]:
    x = torch.randn(batch, length, WIDTH)

    def call() -> None:
        with torch.no_grad():
            module(x)

    return call


def _both(module: nn.Module, batch: int, length: int) -> Callable[[], None]:
    x = torch.randn(batch, length, WIDTH, requires_grad=True)

    def call() -> None:
        y = module(x)
        y = y[0] if isinstance(y, tuple) else y
        torch.autograd.grad(y, [x, *(p for p in module.parameters() if p.requires_grad)], torch.ones_like(y), allow_unused=True)

    return call
