"""What the torch participants share: clocks around a call, and the tokens that every participant is fed."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.tokens import PROMPT, tokens


class TorchModel:
    """A model behind the benchmark's calls. A subclass says how a forward, a step and a loss are spelt."""

    vocabulary: int
    model: torch.nn.Module

    def run(self, ids: Tensor) -> Tensor:
        """Logits (B, V) at the last position of ids (B, L)."""
        raise NotImplementedError

    def start(self, ids: Tensor) -> Any:
        """The state after ids (B, L)."""
        raise NotImplementedError

    def step(self, ids: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Logits (B, V) and the state after one more token a row."""
        raise NotImplementedError

    def loss(self, ids: Tensor) -> Tensor:
        """The mean cross-entropy of the next tokens."""
        raise NotImplementedError

    def ids(self, batch: int, length: int) -> Tensor:
        """(B, L): the same for every participant."""
        return torch.from_numpy(tokens(batch, length, self.vocabulary))

    def logits(self, file: str, length: int, steps: int) -> None:
        """Write the logits after a prompt, and after each of a few steps, (1 + steps, V), for the check."""
        ids = self.ids(1, length + steps)
        with torch.inference_mode():
            rows = [self.run(ids[:, :length])[0]]
            state = self.start(ids[:, :length])
            for t in range(length, length + steps):
                out, state = self.step(ids[:, t], state)
                rows.append(out[0])
        np.save(file, torch.stack(rows).float().numpy())

    def prefill(self, length: int, batch: int = 1) -> float:
        """Seconds from a prompt to its last logits."""
        ids = self.ids(batch, length)
        with torch.inference_mode():
            start = time.perf_counter()
            self.run(ids)
            return time.perf_counter() - start

    def decode(self, batch: int, steps: int) -> float:
        """Seconds of a number of steps of a batch, after a short prompt."""
        ids = self.ids(batch, PROMPT + steps)
        with torch.inference_mode():
            state = self.start(ids[:, :PROMPT])
            start = time.perf_counter()
            for t in range(PROMPT, ids.shape[1]):
                _, state = self.step(ids[:, t], state)
            return time.perf_counter() - start

    def train(self, length: int, batch: int = 1) -> float:
        """Seconds of a forward and a backward pass."""
        ids = self.ids(batch, length)
        self.model.train()
        start = time.perf_counter()
        self.loss(ids).backward()
        seconds = time.perf_counter() - start
        self.model.zero_grad(set_to_none=True)
        self.model.eval()
        return seconds

    def info(self) -> dict[str, Any]:
        """Parameters, and the bytes that one token has to read."""
        seen = {tensor.data_ptr(): tensor for tensor in (*self.model.parameters(), *self.model.buffers())}
        return {
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "bytes": sum(tensor.numel() * tensor.element_size() for tensor in seen.values()),
        }


def dtype_of(name: str) -> torch.dtype:
    """ "float32" or "bfloat16"."""
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype
