"""A Linear's product, forwards and backwards, by the fastest of torch's two libraries and ours, in training among the large tensors."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from statescan.ops import frugal, pages
from statescan.ops import native_gate as gate
from statescan.ops.recomputed import recomputed

FEW = 16
"""Rows below which copying the weight into panels costs more than it gives."""
FEW_ENOUGH = {torch.float32: 24, torch.bfloat16: 8}
"""Rows up to which a product without gradients waits for the weight to be read: the engine's kernel reads fastest."""
NARROW = 32
"""Sides of a weight below which a panel is mostly padding."""
OUTPUT = 2**20
"""Bytes of an output, without gradients, from which it lies in a buffer of :mod:`~statescan.ops.pages`: the C library may give such memory
back to the system whenever it is freed, and each page of it is then made anew."""
SHALLOW = 64
"""Inputs of a weight up to which its outputs are rather computed again in the backward pass than kept."""

onednn = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
"""A Linear by oneDNN, which has no derivative: a tenth faster on a prompt than ours, slower backwards."""


@cache
def few_is_faster() -> bool:
    """The engine's kernel for few rows, where it was measured: AMD's and Intel's processors with AVX-512."""
    return gate.module is not None and gate.instruction_set() == "avx512"


@cache
def ours_is_faster() -> bool:
    """On AMD's processors with AVX-512, where MKL, which torch calls for float32, has nothing but kernels for AVX2."""
    return gate.module is not None and gate.module.amd() and gate.instruction_set() == "avx512"


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear``: x (..., I), weight (O, I), bias (O,) -> (..., O).

    Of plain tensors. Without gradients: the engine's kernel (``native/product.cpp``) for a few rows, bfloat16 too, on a processor with
    AVX-512, oneDNN's (where torch has it) for more float32 rows, where MKL is slow, and torch's else, large outputs in buffers of
    :mod:`~statescan.ops.pages`. In training, in float32: ours (``native/gemm.cpp``) where MKL is slow, else MKL's, in such buffers too.
    torch's anywhere else, and under compilers, autocast and functorch's transforms.
    """
    run = _torch
    if not torch.compiler.is_compiling() and _suits(x, weight, bias):
        rows = x.numel() // x.shape[-1]
        many = rows >= FEW
        large = many and x.dtype == torch.float32
        if not gate.needs_gradient(x, weight, bias):
            if few_is_faster() and rows <= FEW_ENOUGH.get(x.dtype, 0) and weight.stride(1) == 1:
                return _few(x, weight, bias)
            if not large or not ours_is_faster():
                large = many and rows * weight.shape[0] * x.element_size() >= OUTPUT and not torch._C._len_torch_function_stack()
            elif onednn is not None:
                return onednn(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]
        if large:
            run = _recorded
    y = run(x, weight, bias)
    if weight.shape[-1] <= SHALLOW:
        frugal.remember(run, {"x": x, "weight": weight, "bias": bias}, y)
    return y


def _torch(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, weight, bias)


def _recorded(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return recomputed(_forward, _backward, _again, {"x": x, "weight": weight, "bias": bias}, {})[0]


def _few(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Sums in float32; rounded once, at the end."""
    assert gate.module is not None
    rows, weight, bias = _flat(gate.rows(x).float()), gate.rows(weight), gate.rows_or_none(gate.floats(bias))
    (count, depth), out = rows.shape, weight.shape[0]
    y = pages.empty(count, out)
    threads = gate.threads(2 * count * out * depth)
    gate.module.product(threads, count, out, depth, 0, gate.view(weight), (), gate.view(bias), gate.view(rows), gate.view(y))
    return y.to(x.dtype).view(*x.shape[:-1], out)


def _suits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether torch would take them too (it broadcasts a bias of one number, and refuses what is left), and nothing watches."""
    if weight.ndim != 2 or min(weight.shape) < NARROW or x.numel() == 0 or x.shape[-1] != weight.shape[1]:
        return False
    if x.dtype != weight.dtype or (bias is not None and (bias.dtype != x.dtype or bias.shape != weight.shape[:1])):
        return False
    if not gate.plain(x, weight, bias) or torch.is_autocast_enabled("cpu"):
        return False
    return gate.refuse((torch.float32, torch.bfloat16), x=x, weight=weight, bias=bias) is None


def multiply(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a (M, K) times b (K, N), plus bias (N,)."""
    (rows, depth), columns = a.shape, b.shape[1]
    c = pages.empty(rows, columns, dtype=a.dtype)
    if a.dtype != torch.float32 or not ours_is_faster():
        return torch.mm(a, b, out=c) if bias is None else torch.addmm(bias, a, b, out=c)
    assert gate.module is not None
    a, b = _lines(a), _lines(b)
    bias = None if bias is None else gate.rows(bias)
    threads = gate.threads(2 * rows * columns * depth)
    gate.module.gemm(threads, rows, columns, depth, gate.view(a), gate.view(b), gate.view(bias), gate.view(c))
    return c


def _lines(matrix: Tensor) -> Tensor:
    """With rows or columns that are contiguous."""
    if matrix.is_neg():
        matrix = matrix.resolve_neg()
    return matrix if 1 in matrix.stride() else matrix.contiguous()


def _flat(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor]:
    return (multiply(_flat(x), weight.T, bias).view(*x.shape[:-1], weight.shape[0]),)


def _backward(cotangents: tuple[Tensor | None, ...], x: Tensor, weight: Tensor, bias: Tensor | None) -> dict[str, Tensor | None]:
    (gy,) = cotangents
    if gy is None:
        return {"x": None, "weight": None, "bias": None}
    g = _flat(gy)
    return {
        "x": multiply(g, weight).view(x.shape) if x.requires_grad else None,
        "weight": multiply(g.T, _flat(x)) if weight.requires_grad else None,
        "bias": g.sum(0) if bias is not None and bias.requires_grad else None,
    }


def _again(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor]:
    return (_torch(x, weight, bias),)
