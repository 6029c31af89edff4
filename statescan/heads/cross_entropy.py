"""Cross-entropy over a vocabulary that keeps nothing but one number a position: the gradient is formed from the logits themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from statescan.ops import native_gate as gate
from statescan.ops import pages
from statescan.ops.checks import state_dtype

_PIECE = {"cpu": 1 << 18, "cuda": 1 << 20}
"""Logits worked on at a time: a few MiB, or enough to fill a GPU."""


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean of -log softmax(logits)[target] in nats, in float32 (float64 for float64), over the targets that are not negative.

    logits (..., V), targets (...). NaN where there is no target. Beside the logits the backward pass holds their gradient, and nothing
    else of their size, where ``F.cross_entropy`` holds three. There is no second derivative.
    """
    logits, targets = logits.flatten(0, -2), targets.flatten()
    if not (torch.is_grad_enabled() and logits.requires_grad):
        return F.cross_entropy(logits.to(state_dtype(logits)), targets.masked_fill(targets < 0, -100))
    return _CrossEntropy.apply(logits, targets)  # type: ignore[no-untyped-call, no-any-return]


def _pieces(logits: Tensor) -> Iterator[slice]:
    step = max(1, _PIECE.get(logits.device.type, _PIECE["cuda"]) // logits.shape[1])
    for first in range(0, logits.shape[0], step):
        yield slice(first, first + step)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        dtype = state_dtype(logits)
        total, norms = logits.new_zeros((), dtype=dtype), logits.new_empty(logits.shape[0], dtype=dtype)
        exists = targets >= 0
        for rows in _pieces(logits):
            part = logits[rows].to(dtype)
            norms[rows] = part.logsumexp(1)
            chosen = part.gather(1, targets[rows].clamp(min=0).unsqueeze(1)).squeeze(1)
            total += (norms[rows] - chosen).where(exists[rows], 0).sum()
        count = exists.sum()
        ctx.save_for_backward(logits, targets, norms, count)
        return total / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        logits, targets, norms, count = ctx.saved_tensors
        result = pages.empty(logits.shape, dtype=logits.dtype) if logits.is_cpu and gate.plain(logits) else torch.empty_like(logits)
        weights = (gradient / count).where(targets >= 0, 0)
        for rows in _pieces(logits):
            part = result[rows] if result.dtype == norms.dtype else logits.new_empty(result[rows].shape, dtype=norms.dtype)
            torch.sub(logits[rows], norms[rows].unsqueeze(1), out=part).exp_()
            part.scatter_add_(1, targets[rows].clamp(min=0).unsqueeze(1), part.new_full((part.shape[0], 1), -1))
            part.mul_(weights[rows].unsqueeze(1))
            if part.dtype != result.dtype:
                result[rows] = part
        return result, None
