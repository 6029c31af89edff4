"""Other architectures at the same size, in plain torch.

``python -m benchmarks.peers.baselines KIND WIDTH DEPTH VOCABULARY PARAMETERS THREADS``; the kind is ``lstm``, torch's of the same width
and depth, or ``attention``, a transformer (scaled_dot_product_attention, rotary positions, an MLP of four widths, a cache of keys and
values) with as many layers as make the parameters equal.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers.serve import serve
from benchmarks.peers.torch_model import TorchModel

Cache = tuple[Tensor, Tensor]


class Attention(nn.Module):
    """A block: causal attention with 64 channels a head, then an MLP, both on a normalised residual stream."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(2))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, turn: Tensor, cache: Cache | None = None) -> tuple[Tensor, Cache]:
        """x (B, L, D), turn (L, 32) complex -> the same shape, and keys and values so far."""
        q, k, v = (t.unflatten(-1, (-1, 64)).transpose(1, 2) for t in self.qkv(self.norms[0](x)).chunk(3, -1))
        q, k = rotate(q, turn), rotate(k, turn)
        if cache is not None:
            k, v = torch.cat([cache[0], k], 2), torch.cat([cache[1], v], 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=x.shape[1] > 1)  # a prompt starts empty; a step sees all
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norms[1](x)))), (k, v)


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Rotary positions: pairs of channels of x (B, H, L, 64) times turn (L, 32)."""
    return torch.view_as_real(torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous()) * turn).flatten(-2).to(x.dtype)


def turns(first: int, length: int) -> Tensor:
    """exp(i position frequency), (L, 32)."""
    angle = torch.arange(first, first + length).unsqueeze(1) * 10000 ** (-torch.arange(32) / 32)
    return torch.polar(torch.ones_like(angle), angle)


class Transformer(nn.Module):
    """Ids (B, L) -> hidden (B, L, D)."""

    def __init__(self, width: int, depth: int, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Attention(width, 4 * width) for _ in range(depth))
        self.norm = nn.RMSNorm(width)

    def forward(self, ids: Tensor, state: list[Cache] | None = None) -> tuple[Tensor, list[Cache]]:
        """The state is each layer's keys and values."""
        x, after = self.embedding(ids), []
        turn = turns(0 if state is None else state[0][0].shape[2], ids.shape[1])
        for i, block in enumerate(self.blocks):
            x, cache = block(x, turn, None if state is None else state[i])
            after.append(cache)
        return self.norm(x), after


class Lstm(nn.Module):
    """Ids (B, L) -> hidden (B, L, D)."""

    def __init__(self, width: int, depth: int, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, depth, batch_first=True)

    def forward(self, ids: Tensor, state: Cache | None = None) -> tuple[Tensor, Cache]:
        """The state is torch's."""
        y, after = self.lstm(self.embedding(ids), state)
        return y, after


class Baseline(TorchModel):
    """One of the two, with a head tied to the embedding."""

    def __init__(self, kind: str, width: int, depth: int, vocabulary: int, parameters: int, threads: int) -> None:
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self.vocabulary = vocabulary
        if kind == "attention":
            depth = max(1, round((parameters - vocabulary * width) / (12 * width * width)))
        self.model = {"attention": Transformer, "lstm": Lstm}[kind](width, depth, vocabulary).eval()
        nn.init.normal_(self.model.embedding.weight, std=0.02)  # type: ignore[union-attr, arg-type]

    def head(self, h: Tensor) -> Tensor:
        """Hidden to logits."""
        return F.linear(h, self.model.embedding.weight)  # type: ignore[union-attr, arg-type]

    def run(self, ids: Tensor) -> Tensor:
        """See TorchModel."""
        return self.head(self.model(ids)[0][:, -1])

    def start(self, ids: Tensor) -> Any:
        """See TorchModel."""
        return self.model(ids)[1]

    def step(self, ids: Tensor, state: Any) -> tuple[Tensor, Any]:
        """See TorchModel."""
        h, state = self.model(ids[:, None], state)
        return self.head(h[:, 0]), state

    def loss(self, ids: Tensor) -> Tensor:
        """See TorchModel."""
        logits = self.head(self.model(ids)[0][:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


if __name__ == "__main__":
    sizes = [int(word) for word in sys.argv[2:7]]
    serve(lambda: Baseline(sys.argv[1], *sizes))
