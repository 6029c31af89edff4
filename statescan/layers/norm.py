"""Norms, computed in float32 (float64 for float64 inputs) whatever the storage."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan.ops import rms_norm
from statescan.ops.checks import state_dtype

NormKind = Literal["rms", "rms_offset", "layer", "layer_offset", "batch"]


def make_norm(kind: NormKind, d_model: int, eps: float) -> RMSNorm | LayerNorm | GroupLayerNorm | BatchNorm:
    """RMSNorm, OffsetRMSNorm, LayerNorm, a GroupLayerNorm of one group with an offset (so without a bias), BatchNorm: in that order."""
    if kind == "layer_offset":
        return GroupLayerNorm(d_model, eps=eps, offset=True)
    kinds: dict[NormKind, type[RMSNorm] | type[LayerNorm] | type[BatchNorm]] = {
        "rms": RMSNorm, "rms_offset": OffsetRMSNorm, "layer": LayerNorm, "batch": BatchNorm,
    }  # fmt: skip
    return kinds[kind](d_model, eps)


class RMSNorm(nn.Module):
    """weight * x / sqrt(mean(x^2) + eps), in the weight's dtype: a float32 residual stream enters a bfloat16 layer here."""

    def __init__(self, d_model: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, eps=self.eps)

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, eps={self.eps}"


class OffsetRMSNorm(RMSNorm):
    """(1 + weight) * x / sqrt(mean(x^2) + eps); the weight starts at zero, so that weight decay pulls the scale towards one."""

    def __init__(self, d_model: int, eps: float = 1e-5) -> None:
        super().__init__(d_model, eps)
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, 1 + self.weight.to(state_dtype(self.weight)), eps=self.eps).to(self.weight.dtype)


class LayerNorm(nn.LayerNorm):
    """weight * (x - mean(x)) / sqrt(var(x) + eps) + bias, in the weight's dtype as :class:`RMSNorm`."""

    def __init__(self, d_model: int, eps: float = 1e-5) -> None:
        super().__init__(d_model, eps)

    def forward(self, x: Tensor) -> Tensor:
        dtype = state_dtype(x)
        y = F.layer_norm(x.to(dtype), self.normalized_shape, self.weight.to(dtype), self.bias.to(dtype), self.eps)
        return y.to(self.weight.dtype)


class BatchNorm(nn.BatchNorm1d):
    """weight * (x - mean) / sqrt(var + eps) + bias, a channel at a time over all rows and positions; running statistics in eval mode.

    In training every position counts, also one that does not exist, where a stream holds zeros.
    """

    def __init__(self, d_model: int, eps: float = 1e-5) -> None:
        super().__init__(d_model, eps)
        self.num_batches_tracked = None  # with a fixed momentum nothing reads it

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype).flatten(0, -2)).view(x.shape)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, local_metadata: dict[str, Any], *rest: Any) -> None:
        # Weights without versions, from a file, are not those of a torch before num_batches_tracked, to which it would be added.
        super()._load_from_state_dict(state_dict, prefix, local_metadata | {"version": self._version}, *rest)


class GatedRMSNorm(nn.Module):
    """RMSNorm(y * silu(z)), or RMSNorm(y) * silu(z) with ``norm_before_gate``; over each of ``groups`` equal parts of the width."""

    def __init__(self, d_model: int, groups: int = 1, eps: float = 1e-5, norm_before_gate: bool = False) -> None:
        super().__init__()
        if d_model % groups:
            raise ValueError(f"groups must divide d_model; got {groups} and {d_model}")
        self.groups, self.eps, self.norm_before_gate = groups, eps, norm_before_gate
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        return rms_norm(y, self.weight, z, groups=self.groups, eps=self.eps, norm_before_gate=self.norm_before_gate)

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, groups={self.groups}, eps={self.eps}, norm_before_gate={self.norm_before_gate}"


class GroupLayerNorm(nn.Module):
    """scale * (x - mean(x)) / sqrt(var(x) + eps) + bias, over each of ``groups`` equal parts of the width, in the weight's dtype.

    ``offset``: the scale is 1 + weight, and the weight starts at zero.
    """

    def __init__(self, d_model: int, groups: int = 1, eps: float = 1e-5, bias: bool = False, offset: bool = False) -> None:
        super().__init__()
        if d_model % groups:
            raise ValueError(f"groups must divide d_model; got {groups} and {d_model}")
        self.groups, self.eps, self.offset = groups, eps, offset
        self.weight = nn.Parameter(torch.zeros(d_model) if offset else torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        dtype = state_dtype(x)
        parts = x.to(dtype).unflatten(-1, (self.groups, -1))
        y = F.layer_norm(parts, parts.shape[-1:], None, None, self.eps).flatten(-2)
        scale = self.weight.to(dtype)
        y = y * (1 + scale if self.offset else scale)
        return (y if self.bias is None else y + self.bias.to(dtype)).to(self.weight.dtype)

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, groups={self.groups}, eps={self.eps}, bias={self.bias is not None}, offset={self.offset}"
