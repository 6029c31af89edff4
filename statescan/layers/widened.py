"""Products with bfloat16 weights on a processor without bfloat16 instructions: widened in tiles, multiplied in float32."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

TILE = 1024
"""Outputs widened at a time."""
FEW = 4
"""Rows from which widening pays."""


def needed() -> bool:
    """Whether this processor multiplies bfloat16 in software: torch's product is then 5 to 20 times slower than in float32."""
    return not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def products_of(model: nn.Module) -> AbstractContextManager[Any]:
    """:class:`Widened` for inference with a model that has bfloat16 weights, where the processor needs it."""
    return Widened() if any(p.dtype == torch.bfloat16 for p in model.parameters()) and needed() else nullcontext()


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear`` of bfloat16 tensors with float32 sums, rounded once at the end; x (..., I), weight (O, I)."""
    rows = x.reshape(-1, x.shape[-1]).float()
    y = torch.empty(rows.shape[0], weight.shape[0], dtype=x.dtype)
    wide = torch.empty(min(TILE, weight.shape[0]), weight.shape[1])
    for first in range(0, weight.shape[0], TILE):
        tile = weight[first : first + TILE]
        part = rows @ wide[: tile.shape[0]].copy_(tile).T
        if bias is not None:
            part += bias[first : first + TILE]
        y[:, first : first + TILE] = part
    return y.reshape(*x.shape[:-1], weight.shape[0])


class Widened(TorchFunctionMode):
    """Inside the block, every ``F.linear`` of plain bfloat16 tensors on the CPU that needs no gradient is :func:`product`.

    Modules are called as ever, so hooks, adapters and subclasses act. Outputs are those of an exact product, rounded to bfloat16.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is F.linear and not kwargs and len(args) in (2, 3) and _suits(*args):
            return product(*args)
        return func(*args, **(kwargs or {}))


def _suits(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    plain = all(t is None or type(t) in (Tensor, nn.Parameter) for t in (x, weight, bias))
    if not plain or x.dtype != torch.bfloat16 or weight.dtype != torch.bfloat16 or x.device.type != "cpu" or weight.device.type != "cpu":
        return False
    grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias))
    return not grad and x.numel() >= FEW * x.shape[-1] and not torch.is_autocast_enabled("cpu")
