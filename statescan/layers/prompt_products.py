"""The products of a bfloat16 prompt, without gradients, on processors that have no instructions for them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from statescan.ops import native_gate as gate

TILE = 1024
"""Outputs widened at a time."""
FEW = 4
"""Rows from which it pays."""


def widening() -> bool:
    """Whether this processor multiplies bfloat16 in software: torch's product is then 5 to 20 times slower than in float32."""
    return not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def products_of(model: nn.Module) -> AbstractContextManager[Any]:
    """:class:`PromptProducts` for inference with a model that has bfloat16 weights, where their products are slow."""
    return PromptProducts() if widening() and any(p.dtype == torch.bfloat16 for p in model.parameters()) else nullcontext()


def widened(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
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


def _suits(*tensors: Tensor | None) -> bool:
    """Whether these are plain bfloat16 tensors on the CPU that no gradient, compiler or autocast is after."""
    given = [t for t in tensors if t is not None]
    return (
        gate.direct(*given)
        and all(t.dtype == torch.bfloat16 and t.device.type == "cpu" for t in given)
        and not torch.is_autocast_enabled("cpu")
    )


class PromptProducts(TorchFunctionMode):
    """Inside the block, every ``F.linear`` of plain bfloat16 tensors on the CPU that needs no gradient is :func:`widened`, on a processor
    without instructions for bfloat16.

    Modules are called as ever, so hooks, adapters and subclasses act. Outputs are those of an exact product, rounded.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is F.linear and not kwargs and len(args) in (2, 3) and args[0].numel() >= FEW * args[0].shape[-1]:
            x, weight, bias = args if len(args) == 3 else (*args, None)
            if widening() and _suits(x, weight, bias):
                return widened(x, weight, bias)
        return func(*args, **(kwargs or {}))
