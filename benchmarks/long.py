"""Long sequences in constant memory: a scan in chunks, and decoding, each in a process of its own.

``python -m benchmarks.long scan LENGTH THREADS`` and ``... decode LENGTH THREADS`` print one row.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

import statescan as ss
from benchmarks.models import Options
from benchmarks.peers.serve import peak_memory

Row = dict[str, Any]


def scan(options: Options) -> list[Row]:
    """Time a token and peak memory from 16k to 1M positions, the state handed from chunk to chunk."""
    return [_row("scan", length, options) for length in ((16_384, 131_072) if options.quick else (16_384, 65_536, 262_144, 1_048_576))]


def decode(options: Options) -> list[Row]:
    """Time a token and resident memory while a small model decodes."""
    return [_row("decode", length, options) for length in ((10_000, 50_000) if options.quick else (10_000, 100_000, 1_000_000))]


def _row(what: str, length: int, options: Options) -> Row:
    command = [sys.executable, "-m", "benchmarks.long", what, str(length), str(options.threads)]
    out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]).stdout
    row: Row = json.loads(out.splitlines()[-1])
    return row


def run_scan(length: int, chunk: int = 4096) -> Row:
    """selective_scan, B=1, E=128, N=16: the same chunk of inputs over and over, so that drawing them costs nothing."""
    torch.manual_seed(0)
    width, states = 128, 16
    A, D = -torch.arange(1, states + 1.0).repeat(width, 1), torch.ones(width)
    x, delta = torch.randn(2, 1, chunk, width)
    B, C = torch.randn(2, 1, chunk, states)
    state = torch.zeros(1, width, states)
    seconds = []
    with torch.no_grad():
        for _ in range(1 + length // chunk):  # the first round is warm-up
            start = time.perf_counter()
            _, state = ss.ops.selective_scan(x, delta, A, B, C, D, delta_softplus=True, state=state, return_state=True)
            seconds.append(time.perf_counter() - start)
    total = sum(seconds[1:])
    return {
        "L": length,
        "ns a token": total / length * 1e9,
        "G updates/s": length * width * states / total / 1e9,
        "peak memory, MiB": peak_memory(),
    }


def run_decode(length: int) -> Row:
    """Two layers of width 64 and 256 words: the memory is the process's, so a leak of one byte a token shows."""
    torch.manual_seed(0)
    model = ss.create_model("mamba-130m", vocab_size=256, d_model=64, layers="M*2").eval()
    engine = ss.Engine(model)
    state = engine.init_state(1)
    token = torch.tensor([7])
    with torch.inference_mode():
        for _ in range(1000):
            _, state = engine.step(token, state)
        before = peak_memory(reset=True)
        start = time.perf_counter()
        for _ in range(length):
            _, state = engine.step(token, state)
        seconds = time.perf_counter() - start
    after = peak_memory()
    grown = None if before is None or after is None else after - before
    return {"tokens": length, "us a token": seconds / length * 1e6, "peak memory, MiB": after, "grown by, MiB": grown}


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[3]))
    print(json.dumps({"scan": run_scan, "decode": run_decode}[sys.argv[1]](int(sys.argv[2]))))
