"""Every test starts from the same seed and the same settings, and fresh memory holds NaN, so that reading it shows."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

logging.getLogger("torch.__trace").propagate = False  # thousands of records a compilation, which pytest would keep


@pytest.fixture(params=("baseline", "avx2", "avx512"))
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The native kernels run with this instruction set."""
    from statescan.ops import native_gate as gate

    if gate.module is None or not gate.module.supports(request.param):
        pytest.skip(f"this processor or build has no {request.param}")
    before = gate.module.instruction_set()
    gate.module.choose(request.param)
    yield request.param
    gate.module.choose(before)


@pytest.fixture
def on_threads(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Says how many threads the native kernels take from now on, however small the call."""
    from statescan.ops import native_gate as gate

    return lambda count: monkeypatch.setattr(gate, "threads", lambda operations: count)


@pytest.fixture(autouse=True)
def same_settings() -> Iterator[None]:
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.use_deterministic_algorithms(True, warn_only=True)  # the mode in which torch fills new memory with NaN
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)
