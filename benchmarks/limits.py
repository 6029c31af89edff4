"""What this machine can do at most, measured in the same run, and the least time that a model needs on it.

The least time is a sum over the model: for every matrix, the larger of its operations at the rate that a product of that shape reaches
and its bytes at the rate of memory; plus the scans' updates at the rate of a scan that never leaves registers; plus the state, read and
written once a call. The head counts at the logits that were asked for. A training step is three forward passes with logits everywhere.
"""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from statescan import state as states
from statescan.layers import GatedMLP
from statescan.mixers import (
    GLA,
    HGRN2,
    KDA,
    MLSTM,
    RGLRU,
    SLSTM,
    Attention,
    DeltaNet,
    GatedDeltaNet,
    LogLinearGatedDeltaNet,
    LogLinearMamba2,
    Mamba,
    Mamba2,
    Mamba3,
    MesaNet,
    RetNet,
)
from statescan.mixers.rwkv7 import RWKV7ChannelMix, RWKV7TimeMix
from statescan.ops import products

CHUNK = 64
"""Positions a chunk in the count of ssd's products."""
MANY = 64
"""From this many rows on, a product is limited by arithmetic rather than by reading its weights."""


LEVELS = 1.5
"""Levels of log-linear attention that hold something ahead of a chunk: the mean over a prompt of 512 positions in chunks of 64."""
FILLED = 5
"""And of all levels behind 512 positions and a few more, in the middle of decoding."""
SOLVED = 5
"""Conjugate gradients that a position of the mesa layer takes under random weights, to float32's rounding; trained ones may take more."""


class Work(NamedTuple):
    """What one token of a model costs, whatever runs it."""

    matrices: tuple[tuple[int, int], ...]
    """(out, in) of every Linear of the body."""
    head: tuple[int, int]
    rest: int
    """Bytes of the other parameters, but for the embedding."""
    updates: int
    """Of selective scans."""
    products: int
    """Floating-point operations of ssd as products of chunks: the state's update and its readout, and the causal half inside a chunk. Of
    the other matrix states as a loop: two for each number that a write reads or changes, and that a query reads."""
    state: int
    """Bytes of the state of one sequence."""
    recurrent: int
    """Bytes of the recurrent matrices, which are read once a position."""
    head_matrix: int
    """Bytes of that of one head."""


class Cost(NamedTuple):
    """What the scan of one layer costs a token; convolutions, norms, gates and the scores of a window are free in this count."""

    updates: int = 0
    products: int = 0
    recurrent: int = 0
    head_matrix: int = 0


def _matrix_state(passes: float, heads: int, keys: int, width: int) -> Cost:
    return Cost(products=int(2 * passes * heads * keys * width))


def _empty(m: Any) -> int:
    """Bytes of a layer's state that a step need not touch."""
    if not isinstance(m, LogLinearMamba2 | LogLinearGatedDeltaNet):
        return 0
    s = m.init_state(1).s
    return s.numel() * s.element_size() * max(0, s.shape[2] - FILLED) // s.shape[2]


def cost(m: Any) -> Cost:
    """Of a mixer."""
    if isinstance(m, GatedMLP | RWKV7ChannelMix | RGLRU | Attention):
        return Cost()
    if isinstance(m, Mamba):
        return Cost(updates=m.d_inner * m.d_state)
    if isinstance(m, Mamba2):
        return Cost(products=m.d_ssm * (4 * m.d_state + CHUNK) + m.ngroups * CHUNK * m.d_state)
    if isinstance(m, Mamba3):  # a query and a write: what a write gives to its own position and to the next can be added at once
        return _matrix_state(2 * m.rank, m.nheads, m.d_state, m.headdim)
    if isinstance(m, LogLinearMamba2):
        in_chunk = m.ngroups * CHUNK * m.d_state + m.d_inner * CHUNK
        return Cost(products=in_chunk + int(2 * (1 + LEVELS) * m.d_inner * m.d_state))
    if isinstance(m, LogLinearGatedDeltaNet):  # as below, on every level
        return _matrix_state(3 * LEVELS, m.value_shape[0], m.key_shape[1], m.value_shape[1])
    if isinstance(m, MesaNet):  # a write and a product for each step of the solution, then a write and the fit
        return _matrix_state(1 + SOLVED + 2, *m.heads, m.heads[1])
    if isinstance(m, GLA | RetNet | MLSTM):
        return _matrix_state(2, m.num_heads, m.key_width, m.value_width)
    if isinstance(m, HGRN2):
        return _matrix_state(2, m.d_model // m.expand_ratio, m.expand_ratio, m.expand_ratio)
    if isinstance(m, DeltaNet | GatedDeltaNet | KDA):  # a query, and for each write what it reads and what it adds
        return _matrix_state(1 + 2 * m.num_writes, m.value_shape[0], m.key_shape[1], m.value_shape[1])
    if isinstance(m, RWKV7TimeMix):  # one of the two writes reads nothing
        return _matrix_state(4, m.d_model // m.head_dim, m.head_dim, m.head_dim)
    if isinstance(m, SLSTM):
        R = m.slstm_cell._recurrent_kernel_
        return Cost(recurrent=R.numel() * R.element_size(), head_matrix=R[0].numel() * R.element_size())
    raise ValueError(f"the cost of {type(m).__name__} has not been written down")


def work(model: nn.Module) -> Work:
    """Count a language model."""
    body: Any = model.backbone
    linears = [module for module in body.modules() if isinstance(module, nn.Linear)]
    counted = {id(p) for linear in linears for p in (linear.weight,)} | {id(body.embedding.weight)}
    costs = [cost(layer.mixer) for layer in body.layers]
    return Work(
        tuple((linear.out_features, linear.in_features) for linear in linears),
        (model.lm_head.out_features, model.lm_head.in_features),  # type: ignore[union-attr, arg-type]
        sum(p.numel() * p.element_size() for p in body.parameters() if id(p) not in counted),
        sum(c.updates for c in costs),
        sum(c.products for c in costs),
        states.nbytes(model.init_state(1)) - sum(_empty(layer.mixer) for layer in body.layers),  # type: ignore[operator]
        sum(c.recurrent for c in costs),
        max(c.head_matrix for c in costs),
    )


def best(call: Callable[[], Any], repeats: int = 7, budget: float = 0.4) -> float:
    """The fastest repetition, in seconds: a limit is what the machine can do when it is left alone."""
    call()
    low, spent = float("inf"), 0.0
    for i in range(10 * repeats):
        if i >= repeats and spent > budget:
            break
        start = time.perf_counter()
        call()
        seconds = time.perf_counter() - start
        low, spent = min(low, seconds), spent + seconds
    return low


def now(call: Callable[[], Any]) -> float:
    """The same of a moment: the better of two repetitions."""
    return best(call, repeats=2, budget=0.0)


Best = Callable[[Callable[[], Any]], float]


@cache
def _library() -> ctypes.CDLL | None:
    """register_scan.cpp, compiled; None without a compiler."""
    source = Path(__file__).with_name("register_scan.cpp")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "ceilings.so"
        command = ["c++", "-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC", str(source), "-o", str(target)]
        try:
            subprocess.run(command, check=True, capture_output=True)
            library = ctypes.CDLL(str(target))
        except (OSError, subprocess.CalledProcessError):
            return None
    library.scan_updates.restype = ctypes.c_double
    library.scan_updates.argtypes = [ctypes.c_int64, ctypes.c_int, ctypes.POINTER(ctypes.c_float)]
    library.read_memory.restype = ctypes.c_float
    library.read_memory.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    library.read_again.restype = ctypes.c_float
    library.read_again.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
    return library


class Machine:
    """The rates of this machine at a number of threads; each is measured when it is first asked for, and kept."""

    def __init__(self, threads: int, megabytes: int = 512) -> None:
        self.threads = threads
        self._memory = torch.ones(megabytes * 2**18 // 1024, 1024)
        self.measure()

    def measure(self, best: Best = best) -> None:
        """Forget the rates and measure them afresh."""
        self._best = best
        self._rates: dict[tuple[int, int, int, torch.dtype], float] = {}
        self._again: dict[int, float] = {}
        self.bandwidth = self._bandwidth()
        self.scan = self._scan()

    def _bandwidth(self) -> float:
        """Bytes a second: the best of a plain sum, a one-row product and a loop of our own."""
        weight, x = self._memory, torch.ones(1, 1024)
        with torch.inference_mode():
            times = [self._best(weight.sum), self._best(lambda: F.linear(x, weight))]
        library = _library()
        if library is not None:
            share = weight.numel() // self.threads
            with ThreadPoolExecutor(self.threads) as pool:

                def read() -> None:
                    list(pool.map(lambda i: library.read_memory(weight.data_ptr() + 4 * i * share, share), range(self.threads)))

                times.append(self._best(read))
        return weight.numel() * 4 / min(times)

    def _scan(self, positions: int = 100_000) -> float | None:
        """State updates a second of a selective scan in registers, every thread running one; None without a compiler."""
        library = _library()
        if library is None:
            return None
        rates = []
        with ThreadPoolExecutor(self.threads) as pool:
            for together in (2, 4, 8, 16):

                def run(together: int = together) -> float:
                    return sum(pool.map(lambda _: library.scan_updates(positions, together, ctypes.c_float()), range(self.threads)))

                rates.append(run() / self._best(run))
        return max(rates)

    def again(self, size: int, times: int = 200) -> float | None:
        """Bytes a second, of all threads, each reading so many bytes of its own again and again; None without a compiler."""
        library = _library()
        if library is None:
            return None
        if size not in self._again:
            data = torch.ones(self.threads, size // 4)
            with ThreadPoolExecutor(self.threads) as pool:

                def read() -> None:
                    list(pool.map(lambda row: library.read_again(row.data_ptr(), row.numel(), times), data))

                self._again[size] = self.threads * size * times / self._best(read)
        return self._again[size]

    def product(self, rows: int, out: int, into: int, dtype: torch.dtype = torch.float32) -> float:
        """Operations a second of (rows, in) x (in, out), by torch, and where MKL is slow by oneDNN or ours, whatever is fastest.

        Weights narrower than float32 may be widened on the way: the better rate counts. Few rows are measured as many, on at most 4096
        outputs: what a product of few rows waits for is memory, which is counted apart.
        """
        if rows < MANY:
            rows, out = 512, min(out, 4096)
        key = (rows, out, into, dtype)
        if key not in self._rates:
            x, weight = torch.ones(rows, into, dtype=dtype), torch.ones(out, into, dtype=dtype)
            with torch.inference_mode():
                calls = [lambda: F.linear(x, weight)]
                if dtype == torch.float32 and products.ours_is_faster():
                    calls += [lambda: products.linear(x, weight), lambda: products.multiply(x, weight.T)]
                self._rates[key] = 2 * rows * out * into / min(self._best(call) for call in calls)
        rate = self._rates[key]
        return rate if dtype == torch.float32 else max(rate, self.product(rows, out, into))

    def forward(
        self, work: Work, rows: int, logits: int, body: float = 4, head: float = 4, dtype: torch.dtype = torch.float32, sequences: int = 1
    ) -> float:
        """The least seconds of a call of ``rows`` positions, ``logits`` of which go through the head; bytes a weight of body and head."""
        seconds = work.rest / self.bandwidth + 2 * work.state * sequences / self.bandwidth
        for (out, into), through, width in (*((shape, rows, body) for shape in work.matrices), (work.head, logits, head)):
            products = 2 * through * out * into / self.product(through, out, into, dtype)
            seconds += max(products, out * into * width / self.bandwidth)
        if work.updates and self.scan is not None:
            seconds += work.updates * rows / self.scan
        if work.products:
            seconds += work.products * rows / self.product(512, 768, 768)
        if work.recurrent and (rate := self.again(work.head_matrix)) is not None:
            seconds += work.recurrent * rows / sequences / rate
        return seconds

    def training(self, work: Work, rows: int) -> float:
        """Three forward passes in float32, logits everywhere."""
        return 3 * self.forward(work, rows, rows)

    def rates(self) -> dict[str, Any]:
        """What has been measured, for the report."""
        table = {
            f"{rows} x {into} x {out} {str(dtype).removeprefix('torch.')}": rate / 1e9
            for (rows, out, into, dtype), rate in self._rates.items()
        }
        return {
            "memory, GB/s": self.bandwidth / 1e9,
            "selective scan in registers, G updates/s": "absent: no C++ compiler" if self.scan is None else self.scan / 1e9,
            **{f"{size / 1e3:.0f} kB again and again, GB/s": rate / 1e9 for size, rate in self._again.items()},
            "products, GFLOP/s": table,
        }
