"""A language model small enough to reason about: h <- tanh(W h + e[id]), with the contract generation relies on."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from statescan.state import state as declare
from statescan.timeline import Timeline


@declare
class BagState(NamedTuple):
    h: Tensor


class Letters:
    """One token a byte, and an end token."""

    eos_id = 256
    vocab_size = 257

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        return bytes(i for i in ids if i < 256).decode(errors="replace")


class Toy(nn.Module):
    def __init__(self, vocab_size: int = 257, d: int = 24, tokenizer: Any = None, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.vocab_size, self.d, self.tokenizer = vocab_size, d, tokenizer
        self.embedding = nn.Embedding(vocab_size, d)
        self.recurrent = nn.Linear(d, d)
        self.head = nn.Linear(d, vocab_size, bias=False)
        self.dropout = nn.Dropout(0.5)
        self.longest = 0
        self.double()

    def init_state(self, batch_size: int) -> BagState:
        return BagState(self.head.weight.new_zeros(batch_size, self.d))

    def scan(self, ids: Tensor, state: BagState, timeline: Timeline | None = None, *, logits_at: Any = "all") -> tuple[Tensor, BagState]:
        self.longest = max(self.longest, ids.shape[1])
        h, seen = state.h, []
        for t in range(ids.shape[1]):
            new = torch.tanh(self.recurrent(h) + self.embedding(ids[:, t]))
            h = new if timeline is None else torch.where(timeline.mask[:, t, None], new, h)
            seen.append(h)
        at = -1 if logits_at == "last" else logits_at
        return self.head(self.dropout(seen[at])) * 3, BagState(h)

    def step(self, ids: Tensor, state: BagState) -> tuple[Tensor, BagState]:
        return self.scan(ids[:, None], state, logits_at="last")


class Script(nn.Module):
    """Says a fixed text whatever it is told: for stop strings and streaming."""

    def __init__(self, says: bytes, vocab_size: int = 257) -> None:
        super().__init__()
        self.says, self.vocab_size, self.tokenizer = says, vocab_size, Letters()

    def init_state(self, batch_size: int) -> BagState:
        return BagState(torch.zeros(batch_size, 1, dtype=torch.long))

    def scan(self, ids: Tensor, state: BagState, timeline: Timeline | None = None, *, logits_at: Any = "all") -> tuple[Tensor, BagState]:
        return self._say(state.h), BagState(state.h + 1)

    def step(self, ids: Tensor, state: BagState) -> tuple[Tensor, BagState]:
        return self._say(state.h), BagState(state.h + 1)

    def _say(self, place: Tensor) -> Tensor:
        tokens = [self.says[p] if p < len(self.says) else 256 for p in place[:, 0].tolist()]
        return torch.nn.functional.one_hot(torch.tensor(tokens), self.vocab_size).float()
