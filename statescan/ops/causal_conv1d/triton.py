"""The causal convolution as Triton kernels; where a timeline bends the past, with tables of which rows each position meets."""

from __future__ import annotations

import torch
from torch import Tensor

from statescan.ops import native_gate, triton_gate
from statescan.ops.causal_conv1d.recorded import implement
from statescan.ops.positions import existing

MAX_TAPS = 16
BT, BE = 16, 64
"""Positions and channels of a tile."""


def _refuse(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, state: Tensor, reset: Tensor | None, mask: Tensor | None
) -> str | None:  # fmt: skip
    if weight.shape[1] > MAX_TAPS:
        return f"there are {weight.shape[1]} taps; the Triton kernel takes up to {MAX_TAPS}"
    return triton_gate.refuse((torch.float32, torch.bfloat16), x=x, weight=weight, bias=bias, state=state)


class _Tables:
    """Rows of the history (the state's K-1, then those of x) that each position meets, and that stand in the last state.

    ``source`` (B, L, K) and ``last`` (B, K-1) hold rows, ``target`` (B, K-1+L, K) positions, ``place`` (B, K-1+L) places in the last
    state; -1 for none.
    """

    def __init__(self, reset: Tensor | None, mask: Tensor | None, batch: int, length: int, taps: int, device: torch.device) -> None:
        before = taps - 1
        back = torch.arange(taps, device=device)
        exists = torch.ones(batch, length, dtype=torch.bool, device=device) if mask is None else mask
        segment = torch.zeros(batch, length, dtype=torch.long, device=device) if reset is None else reset.long().cumsum(1)
        count = exists.long().cumsum(1)  # existing positions up to here
        # The history with what does not exist deleted: rows of the state, then those of existing positions; what follows is never met.
        order = torch.argsort((~exists).to(torch.uint8), dim=1, stable=True)
        rows = torch.cat([torch.arange(before, device=device).expand(batch, -1), order + before], dim=1)
        owner = torch.cat([segment.new_zeros(batch, before), segment.gather(1, order)], dim=1)

        def pick(index: Tensor, own: Tensor) -> Tensor:
            """Rows at these places of that history, -1 where they belong to another segment; (B, M) and (B, M) or (B, 1)."""
            return torch.where(owner.gather(1, index) == own, rows.gather(1, index), -1)

        place = (count - 1 + before).clamp(min=0)
        index = (place.unsqueeze(-1) - back).clamp(min=0).flatten(1)
        source = pick(index, segment.unsqueeze(-1).expand(-1, -1, taps).flatten(1)).unflatten(1, (length, taps))
        self.source = existing(source, exists, -1)
        final = segment[:, -1:]
        self.last = pick(count[:, -1:] + torch.arange(before, device=device), final)

        total = before + length
        here = torch.arange(length, device=device)[:, None].expand(batch, -1, taps)
        spot = torch.where(self.source >= 0, self.source * taps + back, total * taps).flatten(1)
        target = here.new_full((batch, total * taps + 1), -1).scatter(1, spot, here.flatten(1))
        self.target = target[:, :-1].contiguous()
        spot = torch.where(self.last >= 0, self.last, total)
        self.place = here.new_full((batch, total + 1), -1).scatter(1, spot, torch.arange(before, device=device).expand(batch, -1))
        self.place = self.place[:, :-1].contiguous()


def _tables(x: Tensor, taps: int, reset: Tensor | None, mask: Tensor | None) -> _Tables | None:
    return None if reset is None and mask is None else _Tables(reset, mask, x.shape[0], x.shape[1], taps, x.device)


def _grid(length: int, width: int, batch: int) -> tuple[int, int, int]:
    return -(-length // BT), -(-width // BE), batch


def _last(x: Tensor, state: Tensor, tables: _Tables | None) -> Tensor:
    """The last K-1 rows of the history."""
    length, before = x.shape[1], state.shape[1]
    if tables is None:
        return torch.cat([state[:, length:], x[:, max(0, length - before) :]], dim=1)
    rows = tables.last.clamp(min=0).unsqueeze(-1).expand(-1, -1, x.shape[2])
    old = state.gather(1, rows.clamp(max=max(before - 1, 0))) if before else state
    new = x.gather(1, (rows - before).clamp(min=0))
    kept = torch.where((tables.last < before).unsqueeze(-1), old, new)
    return torch.where((tables.last >= 0).unsqueeze(-1), kept, 0.0).to(x.dtype)


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, reset: Tensor | None, mask: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor]:  # fmt: skip
    from statescan.ops.causal_conv1d import triton_kernels

    x, state, weight = native_gate.rows(x), state.contiguous(), weight.contiguous()
    (batch, length, width), taps = x.shape, weight.shape[1]
    tables = _tables(x, taps, reset, mask)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    with triton_gate.on(x):
        triton_kernels.forward[_grid(length, width, batch)](
            x, state, weight, None if bias is None else bias.contiguous(), None if tables is None else tables.source,
            triton_gate.flags(mask), y, length, width, *x.stride()[:2], SILU=silu, K=taps, BT=BT, BE=BE, num_warps=4,
        )  # fmt: skip
    return y, _last(x, state, tables)


def _backward(
    gy: Tensor, glast: Tensor | None, x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, reset: Tensor | None,
    mask: Tensor | None, silu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, weight, bias (empty if there is none) and state."""
    from statescan.ops.causal_conv1d import triton_kernels

    x, state, weight, gy = native_gate.rows(x), state.contiguous(), weight.contiguous(), gy.contiguous()
    (batch, length, width), taps = x.shape, weight.shape[1]
    tables = _tables(x, taps, reset, mask)
    grid = _grid(length, width, batch)
    ungated = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    part = torch.empty((batch, grid[0], taps + 1, width), dtype=torch.float32, device=x.device)
    gx, gstate = (torch.empty(t.shape, dtype=t.dtype, device=x.device) for t in (x, state))
    with triton_gate.on(x):
        triton_kernels.before_activation[grid](
            x, state, weight, None if bias is None else bias.contiguous(), None if tables is None else tables.source,
            triton_gate.flags(mask), gy, ungated, part, length, width, *x.stride()[:2], SILU=silu, K=taps, BT=BT, BE=BE, num_warps=4,
        )  # fmt: skip
        triton_kernels.backward[_grid(length + taps - 1, width, batch)](
            ungated, weight, None if tables is None else tables.target, None if glast is None else glast.contiguous(),
            None if tables is None else tables.place, gx, gstate, length, width, K=taps, BT=BT, BE=BE, num_warps=4,
        )  # fmt: skip
    total = part.sum((0, 1))
    gbias = total.new_empty(0) if bias is None else total[taps].clone()
    return gx, total[:taps].T.contiguous(), gbias, gstate


implement("triton", _refuse, _forward, _backward, devices=("cpu", "cuda"))
