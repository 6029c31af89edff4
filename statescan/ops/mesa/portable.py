"""The mesa layer by chunks: conjugate gradients at all positions together, whose every matrix product is linear attention.

Letters: B batch, n chunks, C positions a chunk, H heads, K key channels, V value channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from statescan.ops.checks import exactly
from statescan.ops.diagonal_scan.portable import linear_scan
from statescan.ops.head_decays import CHUNK, HeadDecays, chunks, head_decays
from statescan.ops.mesa import op
from statescan.ops.opaque import opaque
from statescan.ops.positions import existing


@op.implementation("portable")
def portable(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor,
    ridge: Tensor,
    iterations: int,
    G: Tensor,
    S: Tensor,
    reset: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """y (B, L, H, V) and the last G and S."""
    dtype = S.dtype
    with exactly(v):
        q, k, values, beta, g = (existing(tensor, mask).to(dtype) for tensor in (q, k, v, beta, log_decay))
        run = _opaque if torch.compiler.is_compiling() else chunked
        y, G, S = run(q, k, values, beta, g, ridge.to(dtype), G, S, reset, iterations)
        return existing(y, mask).to(v.dtype), G, S


def chunked(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor, ridge: Tensor, G: Tensor, S: Tensor, reset: Tensor | None, steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """See the op; all of one dtype."""
    length = v.shape[1]
    chunk = min(CHUNK, length)
    decays = head_decays(log_decay, reset, chunk)
    written = chunks(beta.unsqueeze(-1) * k, chunk)
    q, k, v = (chunks(tensor, chunk) for tensor in (q, k, v))
    G_in, G = _between(decays, k, written, G)
    S_in, S = _between(decays, written, v, S)
    fit: Tensor = _Solve.apply(q, k, written, decays.within, decays.entry, (G_in + G_in.mT) / 2, ridge, steps)  # type: ignore[no-untyped-call]
    y = _read(fit, written, v, decays.within, decays.entry, S_in)
    return y.transpose(2, 3).flatten(1, 2)[:, :length], G, S


def _between(decays: HeadDecays, keys: Tensor, values: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The states before each chunk, (B, n, H, K, V), and the last."""
    ends = (keys * decays.arriving.unsqueeze(-1)).mT @ values
    after = linear_scan(decays.carried[..., None, None], ends, state)
    return torch.cat([state.unsqueeze(1), after[:, :-1]], dim=1), after[:, -1].clone()


def _read(x: Tensor, keys: Tensor, values: Tensor, within: Tensor, entry: Tensor, incoming: Tensor) -> Tensor:
    """Linear attention with queries x (B, n, H, C, K)."""
    return ((x @ keys.mT) * within) @ values + (x * entry.unsqueeze(-1)) @ incoming


def _times(x: Tensor, k: Tensor, written: Tensor, within: Tensor, entry: Tensor, incoming: Tensor, ridge: Tensor) -> Tensor:
    """(G_t + Diag(ridge)) x_t at every position."""
    return _read(x, written, k, within, entry, incoming) + ridge.unsqueeze(-2) * x


class _Solve(Function):
    """x with (G_t + Diag(ridge)) x_t = q_t. Its derivative solves the same, symmetric system for the cotangent, and has one itself."""

    @staticmethod
    def forward(*given: Any) -> Tensor:
        q, *operands, steps = given
        return _conjugate_gradients(q, operands, steps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.steps = inputs
        ctx.save_for_backward(*tensors[1:], output)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        *operands, x = ctx.saved_tensors
        w = _Solve.apply(cotangent, *operands, ctx.steps)  # type: ignore[no-untyped-call]
        # x moves by -A^-1 (dA) x
        return (w, *torch.func.vjp(lambda *moved: _times(x, *moved), *operands)[1](-w), None)


def _conjugate_gradients(b: Tensor, operands: list[Tensor], steps: int) -> Tensor:
    """From zero; each position stops for itself where its residual is at rounding, so what stands beside it changes nothing."""
    x, r, p = torch.zeros_like(b), b, b
    rr = b.square().sum(-1, keepdim=True)
    small = torch.finfo(b.dtype).eps ** 2 * rr
    told = not b.is_meta and not torch._C._functorch.is_legacy_batchedtensor(b)  # whether these are numbers that can be asked about
    for _ in range(steps):
        going = rr > small
        if told and not bool(going.any()):
            break
        Ap = _times(p, *operands)
        alpha = torch.where(going, rr / torch.where(going, (p * Ap).sum(-1, keepdim=True), 1.0), 0.0)
        x, r = x + alpha * p, r - alpha * Ap
        old, rr = rr, r.square().sum(-1, keepdim=True)
        p = r + torch.where(going, rr / torch.where(going, old, 1.0), 0.0) * p
    return x


_opaque = opaque(
    "mesa",
    chunked,
    "Tensor q, Tensor k, Tensor v, Tensor beta, Tensor log_decay, Tensor ridge, Tensor G, Tensor S, Tensor? reset, int steps",
    lambda q, k, v, beta, log_decay, ridge, G, S, reset, steps: (v, G, S),
    results=3,
)
