"""The loop with few and small calls: states are written where they stay, one stacked tensor a position, and the derivative is written out.

From the states that the forward pass kept, the derivative recomputes the gates of all positions of a block at once; what remains in its
loop is linear. It is made of differentiable parts, so it can be differentiated again. To compilers each direction is one operator, as a
traced graph must not depend on the length.

Letters inside: a position's states are (4, H, B, P), in the order h, c, n, m. An empty cell has m = -inf here, so that no case is special.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from statescan.ops.checks import exactly
from statescan.ops.positions import existing
from statescan.ops.slstm import op

BLOCK = 128
"""Positions whose gates the backward pass holds at a time."""


@op.implementation("portable")
def portable(
    gates: Tensor, R: Tensor, h: Tensor, c: Tensor, n: Tensor, m: Tensor, reset: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """y (B, L, H, P) and the last h, c, n and m, each (B, H, P)."""
    dtype = h.dtype
    with exactly(gates):
        given = existing(gates, mask).to(dtype).permute(1, 3, 0, 2, 4)  # (L, H, B, 4, P)
        start = torch.stack([h, c, n, torch.where(n == 0, float("-inf"), m)]).transpose(1, 2)
        arguments = (given, R.to(dtype).transpose(0, 1), start, _flags(reset), _flags(mask))
        states = _opaque(*arguments) if torch.compiler.is_compiling() else _Loop.apply(*arguments)  # (L, 4, H, B, P)
        y = existing(states[:, 0].permute(2, 0, 1, 3), mask).to(gates.dtype)
        h, c, n, m = states[-1].transpose(1, 2).clone().unbind(0)
        return y, h, c, n, torch.where(n == 0, 0.0, m)


def _flags(field: Tensor | None) -> Tensor | None:
    """(B, L) to (L, B, 1)."""
    return None if field is None else field.t().unsqueeze(-1)


def _empty(like: Tensor) -> Tensor:
    """States of cells that hold nothing, (4, 1, 1, 1)."""
    return like.new_tensor([0.0, 0.0, 0.0, float("-inf")]).view(4, 1, 1, 1)


def _solve(gates: Tensor, R: Tensor, start: Tensor, reset: Tensor | None, mask: Tensor | None) -> Tensor:
    """gates (L, H, B, 4, P), R (H, 4, P, P), start (4, H, B, P), flags (L, B, 1) -> all states (L, 4, H, B, P)."""
    length, heads, batch, _, cells = gates.shape
    inputs = gates.reshape(length, heads, batch, 4 * cells)
    read = R.flatten(1, 2).mT.contiguous()
    states = start.new_empty(length, *start.shape)
    weights, empty, before = start.new_empty(2, heads, batch, cells), _empty(start), start
    for t, (given, now) in enumerate(zip(inputs.unbind(0), states.unbind(0), strict=True)):
        if reset is not None:
            before = torch.where(reset[t], empty, before)
        h, c, n, m = now.unbind(0)
        i, f, z, o = torch.baddbmm(given, before[0], read).unflatten(-1, (4, cells)).unbind(2)
        forget, put = weights.unbind(0)
        kept = F.logsigmoid(f).add_(before[3])
        torch.maximum(kept, i, out=m)
        torch.sub(kept, m, out=forget)
        torch.sub(i, m, out=put)
        weights.exp_()
        torch.addcmul(put, forget, before[2], out=n)
        torch.mul(put, z.tanh(), out=c).addcmul_(forget, before[1])
        torch.mul(o.sigmoid(), c, out=h).div_(n)
        if mask is not None:
            now.copy_(torch.where(mask[t], now, before))
        before = now
    return states


class _Local(NamedTuple):
    """How one position turns gradients of its states into those of its gates and of the states before: coefficients, (T, ..., H, B, P)."""

    of_h: Tensor
    """Derivatives of h by c and n."""
    by_c: Tensor
    """What a gradient of c gives to the logarithms of i' and f'."""
    by_n: Tensor
    """The same of n."""
    chosen: Tensor
    """Whether m is i, and whether it is the other."""
    slope: Tensor
    """(T, H, B, 4, P): from those logarithms, c and h to i, f, z and o."""
    forget: Tensor

    @staticmethod
    def of(gates: Tensor, R: Tensor, before: Tensor, after: Tensor, mask: Tensor | None) -> _Local:
        """At T positions, from the states (T, 4, H, B, P) before and after each."""
        old_h, old_c, old_n, old_m = before.unbind(1)
        h, _, n, m = after.unbind(1)
        i, f, z, o = (gates + torch.einsum("lhbp,hgqp->lhbgq", old_h, R)).unbind(-2)
        kept = F.logsigmoid(f) + old_m
        if mask is not None:  # any finite numbers will do where nothing is
            here = mask.unsqueeze(1)
            n, m = torch.where(here, n, 1.0), torch.where(here, m, torch.maximum(kept, i))
        forget, put, candidate, out = (kept - m).exp(), (i - m).exp(), z.tanh(), o.sigmoid()
        chosen = torch.stack([kept <= i, kept > i], dim=1).to(gates.dtype)
        slope = torch.stack([torch.ones_like(f), (-f).sigmoid(), put * (1 - candidate.square()), h * (1 - out)], dim=-2)
        return _Local(
            torch.stack([out / n, -h / n], dim=1), torch.stack([put * candidate, forget * old_c], dim=1),
            torch.stack([put, forget * old_n], dim=1), chosen, slope, forget.unsqueeze(1),
        )  # fmt: skip

    def back(self, t: int, grad: Tensor) -> tuple[Tensor, Tensor]:
        """From the gradient of the states (4, H, B, P): of the gates (H, B, 4, P), and of c, n and m before (3, H, B, P)."""
        grad_cn = torch.addcmul(grad[1:3], self.of_h[t], grad[:1])
        logs = torch.addcmul(self.by_c[t] * grad_cn[:1], self.by_n[t], grad_cn[1:])
        logs = torch.addcmul(logs, self.chosen[t], grad[3] - logs.sum(0))
        raw = torch.stack([logs[0], logs[1], grad_cn[0], grad[0]], dim=-2) * self.slope[t]
        return raw, torch.cat([grad_cn * self.forget[t], logs[1:]])


def _pull(grad: Tensor, gates: Tensor, R: Tensor, start: Tensor, reset: Tensor | None, mask: Tensor | None, states: Tensor) -> Gradients:
    """Gradients of gates, R and start, from those of all states."""
    length = gates.shape[0]
    before = torch.cat([start.unsqueeze(0), states[:-1]])
    write = R.flatten(1, 2)
    carry, grad_R, blocks = torch.zeros_like(start), torch.zeros_like(write), []
    for first in reversed(range(0, length, BLOCK)):
        here = slice(first, first + BLOCK)
        old = before[here] if reset is None else torch.where(reset[here][:, None, None], _empty(start), before[here])
        local, raws = _Local.of(gates[here], R, old, states[here], None if mask is None else mask[here]), []
        for t in reversed(range(old.shape[0])):
            total = grad[first + t] + carry
            raw, rest = local.back(t, total)
            if mask is not None:
                raw = torch.where(mask[first + t].unsqueeze(-1), raw, 0.0)
            raws.append(raw)
            carry = torch.cat([(raw.flatten(-2) @ write).unsqueeze(0), rest])
            if mask is not None:
                carry = torch.where(mask[first + t], carry, total)
            if reset is not None:
                carry = torch.where(reset[first + t], 0.0, carry)
        block = torch.stack(raws[::-1])
        blocks.append(block)
        grad_R = grad_R + torch.einsum("lhbg,lhbp->hgp", block.flatten(-2), old[:, 0])
    return torch.cat(blocks[::-1]), grad_R.view_as(R), carry


Gradients = tuple[Tensor, Tensor, Tensor]
_ARGUMENTS = "Tensor gates, Tensor R, Tensor start, Tensor? reset, Tensor? mask"


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs, output)


class _Loop(torch.autograd.Function):
    """For eager code."""

    @staticmethod
    def forward(gates: Tensor, R: Tensor, start: Tensor, reset: Tensor | None, mask: Tensor | None) -> Tensor:
        return _solve(gates, R, start, reset, mask)

    setup_context = staticmethod(_keep)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return (*_pull(grad, *ctx.saved_tensors), None, None)


_opaque = torch.library.custom_op("statescan::slstm_loop", _solve, mutates_args=(), schema=f"({_ARGUMENTS}) -> Tensor")
_opaque_backward = torch.library.custom_op(
    "statescan::slstm_loop_backward", _pull, mutates_args=(),
    schema=f"(Tensor grad, {_ARGUMENTS}, Tensor states) -> (Tensor, Tensor, Tensor)",
)  # fmt: skip
_opaque.register_fake(lambda gates, R, start, reset, mask: start.new_empty(gates.shape[0], *start.shape))
_opaque_backward.register_fake(
    lambda grad, gates, R, start, reset, mask, states: tuple(
        torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in (gates, R, start)
    )
)
_opaque.register_autograd(lambda ctx, grad: (*_opaque_backward(grad, *ctx.saved_tensors), None, None), setup_context=_keep)
