"""Rotary positions: pairs of channels turned by an angle that grows with the position, so that products know distances only.

Paper: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021, https://arxiv.org/abs/2104.09864.
"""

from __future__ import annotations

import torch
from torch import Tensor

from statescan.ops.checks import state_dtype


def rotate(x: Tensor, position: Tensor, base: float, width: int) -> Tensor:
    """Turn the first ``width`` channels of x (B, L, H, P) by position (B, L); the other channels pass.

    Channel i is paired with i + width / 2, and turns by ``position * base ** (-2 i / width)``. Angles are float32 (float64 for float64).
    """
    dtype = state_dtype(x)
    exponent = torch.arange(0, width, 2, dtype=dtype, device=x.device) / width
    angle = (position.to(dtype).unsqueeze(-1) / base**exponent).unsqueeze(2)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second, rest = x.split([width // 2, width // 2, x.shape[-1] - width], dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)
