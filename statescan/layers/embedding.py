"""The embedding of token ids, whose gradient is only as large as what was read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from statescan.ops import native_gate as gate
from statescan.ops import pages


class Embedding(nn.Embedding):
    """``nn.Embedding``, whose gradient takes memory, on a CPU, only for rows that were read.

    It is a dense tensor like any other, but the pages of zeros between those rows are the system's until something writes to them; where a
    head shares the weight, the sum is made in the head's gradient, and they never are.
    """

    def forward(self, input: Tensor) -> Tensor:
        plain = gate.plain(input, self.weight) and self.weight.is_cpu and not gate.transformed()
        special = self.padding_idx is not None or self.max_norm is not None or self.scale_grad_by_freq or self.sparse
        large = self.weight.numel() * self.weight.element_size() >= pages.LARGE
        if special or not large or not plain or not gate.needs_gradient(self.weight):
            return super().forward(input)
        return _Rows.apply(input, self.weight)  # type: ignore[no-any-return]


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.shape = weight.shape
        return nn.functional.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:  # type: ignore[override]
        (ids,) = ctx.saved_tensors
        return None, pages.zeros(ctx.shape, grad.dtype).index_add_(0, ids.flatten(), grad.reshape(-1, grad.shape[-1]))
