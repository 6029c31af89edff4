"""Power series: O((d + L) log(d + L)) instead of O(d^2 L).

The row c^T A^l is the window s_l .. s_{l+d-1} of the sequence that starts with c and goes on by s_{l+d} = sum_i a_i s_{l+i}. Its
generating function is P / Q with Q = 1 - sum_i a_i z^{d-i} and P = Q c mod z^d, and K_l = sum_i s_{l+i} b_i is a coefficient of P / Q
times b reversed.

1/Q is found by Newton's iteration, which doubles the number of right coefficients. (The paper evaluates the kernel at the roots of unity
instead, where an eigenvalue may lie: with a >= 0 of sum one, 1 is an eigenvalue, and the value there is 0/0.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from statescan.ops.companion_kernel import op
from statescan.ops.fft_conv.portable import smooth


@op.implementation("portable")
def portable(a: Tensor, b: Tensor, c: Tensor, length: int) -> Tensor:
    """K (..., L)."""
    wide = torch.float32 if a.device.type == "mps" else torch.float64
    dtype, d = a.dtype, a.shape[-1]
    a, b, c = a.to(wide), b.to(wide), c.to(wide)
    q = torch.cat([torch.ones_like(a[..., :1]), -a.flip(-1)], -1)
    start = product(q[..., :d], c, d)
    inverse = reciprocal(q, length + d)
    # Nothing wraps around to the coefficients that are read. A tracer sees a number whose half it can name.
    traced = torch.compiler.is_compiling() or not isinstance(length, int)
    points = 2 * (length + 2 * d) if traced else _points(length + 3 * d)
    spectrum = torch.fft.rfft(start, n=points) * torch.fft.rfft(inverse, n=points) * torch.fft.rfft(b.flip(-1), n=points)
    return torch.fft.irfft(spectrum, n=points)[..., d - 1 : d - 1 + length].to(dtype)


def _points(least: int) -> int:
    """A length that a transform likes, where it is a number."""
    return least if torch.compiler.is_compiling() or not isinstance(least, int) else smooth(least)


def product(p: Tensor, q: Tensor, terms: int) -> Tensor:
    """The first ``terms`` coefficients of the product of two series, (..., m) and (..., n)."""
    points = _points(p.shape[-1] + q.shape[-1])
    out = torch.fft.irfft(torch.fft.rfft(p, n=points) * torch.fft.rfft(q, n=points), n=points)
    return out[..., :terms]


def reciprocal(q: Tensor, terms: int) -> Tensor:
    """The first ``terms`` coefficients of 1/q, for a series (..., m) whose first coefficient is 1."""
    return _opaque(q, terms) if torch.compiler.is_compiling() else _Reciprocal.apply(q, terms)


def _solve(q: Tensor, terms: int) -> Tensor:
    h, n = torch.ones_like(q[..., :1]), 1
    while n < terms:
        n = min(2 * n, terms)
        residual = -product(q[..., :n], h, n)
        residual = torch.nn.functional.pad(residual, (0, n - residual.shape[-1]))
        residual[..., 0] += 1
        h = torch.nn.functional.pad(h, (0, n - h.shape[-1]))
        h = h + product(h, residual, n)
    return h


def _keep(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
    ctx.save_for_backward(output)
    ctx.width = inputs[0].shape[-1]


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    """d(1/q) = -(1/q)^2 dq, transposed: a correlation of the gradient with the square."""
    (h,) = ctx.saved_tensors
    width, terms = ctx.width, h.shape[-1]
    found = product(product(h, h, terms), grad.flip(-1), terms).flip(-1)[..., :width]
    return -torch.nn.functional.pad(found, (0, width))[..., :width], None


class _Reciprocal(torch.autograd.Function):
    """For eager code and torch.func."""

    @staticmethod
    def forward(q: Tensor, terms: int) -> Tensor:
        return _solve(q, terms)

    setup_context = staticmethod(_keep)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return _gradients(ctx, grad)


@torch.library.custom_op("statescan::series_reciprocal", mutates_args=())
def _opaque(q: Tensor, terms: int) -> Tensor:
    return _solve(q, terms)


@_opaque.register_fake
def _(q: Tensor, terms: int) -> Tensor:
    return q.new_empty(*q.shape[:-1], terms)


_opaque.register_autograd(_gradients, setup_context=_keep)
