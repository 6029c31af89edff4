"""Mamba-3 as a plain loop: the formulas of the op, one position at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from statescan.ops.mamba3 import op
from statescan.ops.positions import existing


@op.implementation("reference")
def reference(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, delta: Tensor, mix: Tensor, speed: Tensor, q_bias: Tensor, k_bias: Tensor,
    D: Tensor, v_weight: Tensor | None, z: Tensor | None, z_weight: Tensor | None, y_weight: Tensor | None, angle: Tensor, ssm: Tensor,
    last_k: Tensor, last_v: Tensor, reset: Tensor | None, mask: Tensor | None, layout: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """y (B, L, H, P) or o (B, L, R, H, P), and the last angle, S, k and v."""
    given, dtype, members = v.dtype, ssm.dtype, v.shape[2] // q.shape[3]
    q, k, v, log_decay, delta, mix, speed = (existing(x, mask).to(dtype) for x in (q, k, v, log_decay, delta, mix, speed))
    gate = None if z is None else existing(z, mask).to(dtype)
    ones = v.new_ones(v.shape[2], q.shape[2], v.shape[3])
    v_weight, z_weight, y_weight = (ones if w is None else w.to(dtype) for w in (v_weight, z_weight, y_weight))

    def turned(x: Tensor, bias: Tensor) -> Tensor:
        """(B, R, G, N) -> (B, H, R, N)."""
        x = x.repeat_interleave(members, dim=2).transpose(1, 2) + bias.to(dtype)
        first, second = (x[..., 0::2], x[..., 1::2]) if layout == "pairs" else x.chunk(2, dim=-1)
        phase = F.pad(angle, (0, first.shape[-1] - angle.shape[-1])).unsqueeze(2)
        pair = first * phase.cos() - second * phase.sin(), first * phase.sin() + second * phase.cos()
        return torch.stack(pair, dim=-1).flatten(-2) if layout == "pairs" else torch.cat(pair, dim=-1)

    last_k, outputs = last_k.transpose(1, 2), []
    for t in range(v.shape[1]):
        if reset is not None:
            again = reset[:, t, None, None]
            angle, last_v = (torch.where(again, 0.0, old) for old in (angle, last_v))
            ssm, last_k = (torch.where(again.unsqueeze(-1), 0.0, old) for old in (ssm, last_k))
        before = angle, ssm, last_k, last_v
        step, end = delta[:, t], mix[:, t] * delta[:, t]
        angle = angle + speed[:, t, None] * step.unsqueeze(-1)
        keys, queries = turned(k[:, t], k_bias), turned(q[:, t], q_bias)
        inputs = v[:, t].unsqueeze(2) * v_weight
        old = torch.einsum("bhrp,bhrn,bh->bhpn", last_v.unsqueeze(2) * v_weight, last_k, step - end)
        ssm = log_decay[:, t, :, None, None].exp() * (ssm + old) + torch.einsum("bhrp,bhrn,bh->bhpn", inputs, keys, end)
        o = torch.einsum("bhpn,bhrn->bhrp", ssm, queries) + D.to(dtype)[:, None, None] * inputs
        last_k, last_v = keys, v[:, t]
        if mask is not None:
            here = mask[:, t, None, None]
            angle, last_v = torch.where(here, angle, before[0]), torch.where(here, last_v, before[3])
            ssm, last_k = torch.where(here.unsqueeze(-1), ssm, before[1]), torch.where(here.unsqueeze(-1), last_k, before[2])
        outputs.append(o.transpose(1, 2) if gate is None else (y_weight * o * F.silu(gate[:, t].unsqueeze(2) * z_weight)).sum(2))
    y = existing(torch.stack(outputs, dim=1), mask)
    return y.to(given), torch.remainder(angle, 2 * torch.pi), ssm, last_k.transpose(1, 2), last_v
