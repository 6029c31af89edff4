"""From logits to the next token: the filters of nucleus sampling and its kin, and a draw that belongs to its row.

The filters equal those of transformers on the same logits, and apply in the same order: repetition penalty, temperature, top-k, top-p,
min-p. All work on logits (B, V) in float32 and return logits (B, V), with -inf where a token is excluded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampler:
    """How the next token is chosen. ``do_sample=None`` samples unless the temperature is 0; otherwise the likeliest token is taken.

    Of exactly equal logits greedy choice takes the lowest id.
    """

    do_sample: bool | None = None
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature must be a number >= 0 (0 is greedy); got {self.temperature}")
        if self.do_sample and self.temperature == 0:
            raise ValueError("do_sample=True with temperature=0 is a contradiction: temperature 0 is greedy; leave do_sample out")
        if self.top_k is not None and self.top_k < 0:
            raise ValueError(f"top_k must be a positive integer, or None (or 0) for no limit; got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1]; got {self.top_p}")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must lie in [0, 1]; got {self.min_p}")
        if not (self.repetition_penalty > 0 and math.isfinite(self.repetition_penalty)):
            raise ValueError(f"repetition_penalty must be a number > 0 (1 changes nothing); got {self.repetition_penalty}")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken, without a draw."""
        return self.temperature == 0 or self.do_sample is False

    def __call__(self, logits: Tensor, seen: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """logits (B, V), seen bool (B, V): tokens read or written so far, one generator a row -> tokens (B,) int64."""
        logits = logits.float()
        if self.repetition_penalty != 1.0:
            logits = penalize_repetition(logits, seen, self.repetition_penalty)
        if self.greedy:
            return logits.argmax(-1)
        if self.temperature != 1.0:
            logits = logits / self.temperature
        if self.top_k:
            logits = keep_top_k(logits, self.top_k)
        if self.top_p is not None and self.top_p < 1:
            logits = keep_top_p(logits, self.top_p)
        if self.min_p:
            logits = keep_min_p(logits, self.min_p)
        return draw(logits, generators)


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Divide positive and multiply negative logits of the tokens in ``seen`` (bool, (B, V)) by ``penalty``."""
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """The k highest logits of each row; those equal to the k-th stay too."""
    kth = logits.topk(min(k, logits.shape[-1]), dim=-1).values[..., -1:]
    return logits.masked_fill(logits < kth, -math.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """The smallest set of likeliest tokens whose probability exceeds p: what is left out sums to at most 1 - p. The first always stays."""
    ascending, order = logits.sort(dim=-1)
    excluded = ascending.softmax(-1).cumsum(-1) <= 1 - p
    excluded[..., -1] = False
    return logits.masked_fill(torch.zeros_like(excluded).scatter(-1, order, excluded), -math.inf)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Tokens at least p times as likely as the likeliest."""
    probabilities = logits.softmax(-1)
    return logits.masked_fill(probabilities < p * probabilities.amax(-1, keepdim=True), -math.inf)


def draw(logits: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """One token a row by inverting the cumulative distribution in float64.

    Each row uses one number of its own (CPU) generator, so its tokens depend neither on its neighbours nor on the device's random stream.
    """
    cumulative = logits.double().softmax(-1).cumsum(-1)
    uniform = torch.stack([torch.rand((), generator=generator, dtype=torch.float64) for generator in generators])
    threshold = uniform.to(logits.device).unsqueeze(-1) * cumulative[..., -1:]
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(-1)  # right: never a token of probability zero


def row_generators(seed: int | Sequence[int] | None, rows: int) -> list[torch.Generator]:
    """A generator a row: row i of an integer seed uses ``seed + i``; a sequence gives each row's; None asks torch's own stream."""
    if seed is None:
        seed = int(torch.randint(2**62, ()))
    seeds = [seed + i for i in range(rows)] if isinstance(seed, int) else list(seed)
    if len(seeds) != rows:
        raise ValueError(f"got {len(seeds)} seeds for {rows} rows: give one a row, or a single integer")
    return [torch.Generator().manual_seed(s) for s in seeds]
