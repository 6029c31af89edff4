"""A split whose gradients meet in one buffer: torch's values and gradients, whichever parts are used, and all of torch's ways to ask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from statescan.ops.parts import split

SIZES = [3, 0, 4, 1]


def whole(dtype: torch.dtype = torch.float64, length: int = 5) -> Tensor:
    return torch.randn(2, length, sum(SIZES), dtype=dtype, generator=torch.Generator().manual_seed(0)).requires_grad_()


@pytest.mark.parametrize("used", [(0,), (3,), (0, 2), (1, 2), (0, 1, 2, 3), ()])
@pytest.mark.parametrize(("dtype", "length"), [(torch.float64, 5), (torch.float32, 40_000), (torch.bfloat16, 5)])  # the second in a segment
def test_gradient(used: tuple[int, ...], dtype: torch.dtype, length: int) -> None:
    x, y = whole(dtype, length), whole(dtype, length)
    ours, theirs = split(x * 1, SIZES), (y * 1).split(SIZES, dim=-1)
    for part, other in zip(ours, theirs, strict=True):
        assert torch.equal(part, other)
    for parts, source in ((ours, x), (theirs, y)):
        ((source * 0).sum() + sum((parts[i] * parts[i]).sum() for i in used)).backward()
    assert torch.equal(x.grad, y.grad)  # type: ignore[arg-type]


class Indifferent(torch.autograd.Function):
    """It says of no input that it depends on it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> None:  # type: ignore[override]
        return None


def test_no_part_has_a_gradient() -> None:
    x = whole()
    first = split(x * 1, SIZES)[0]
    assert torch.autograd.grad(Indifferent.apply(first).sum(), x, allow_unused=True) == (None,)  # type: ignore[no-untyped-call]


def test_second_derivatives_and_transforms() -> None:
    def cube(x: Tensor) -> Tensor:
        a, _, b, c = split(x, SIZES)
        return (a**3).sum() + (b * c).sum()

    x = whole()
    assert torch.autograd.gradgradcheck(cube, (x,))
    expected = torch.autograd.functional.hessian(cube, x.detach())
    torch.testing.assert_close(torch.autograd.functional.hessian(cube, x.detach(), vectorize=True), expected)  # batched gradients
    torch.testing.assert_close(torch.func.hessian(cube)(x.detach()), expected)


def test_compiled() -> None:
    x = whole(torch.float32)
    expected = torch.autograd.grad(sum(part.square().sum() for part in x.split(SIZES, dim=-1)), x)[0]
    run = torch.compile(lambda x: sum(part.square().sum() for part in split(x, SIZES)), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(torch.autograd.grad(run(x), x)[0], expected)
