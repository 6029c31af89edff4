"""What the compiled kernels of the causal convolution share: how torch records them, and how the op calls them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from statescan.ops import native_gate as gate
from statescan.ops.causal_conv1d import op

_INPUTS = "Tensor x, Tensor weight, Tensor? bias, Tensor state, Tensor? reset, Tensor? mask, bool silu"


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(state.shape)


def _fake_backward(
    gy: Tensor, glast: Tensor | None, x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return gate.fake_like(x, x), gate.fake_like(weight, x), gate.fake_like(bias, x), gate.fake_like(state, x)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.silu = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)


def implement(
    kind: str,
    refuse: Callable[..., str | None],
    forward: Callable[..., tuple[Tensor, Tensor]],
    backward: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]],
    *,
    devices: str | Sequence[str] = "cpu",
) -> None:
    """Add an implementation of this kind: ``forward`` takes what the schema names, ``backward`` two gradients before that; it returns those
    of x, weight, bias (empty if there is none) and state.
    """

    def gradients(ctx: Any, gy: Tensor | None, glast: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weight, bias, state, reset, mask = ctx.saved_tensors
        if gy is None:
            gy = torch.zeros_like(x)
        gx, gweight, gbias, gstate = conv_backward(gy, glast, x, weight, bias, state, reset, mask, ctx.silu)
        return gx, gweight, None if bias is None else gbias, gstate, None, None, None

    conv, conv_backward = gate.register(
        "causal_conv1d",
        f"({_INPUTS}) -> (Tensor, Tensor)",
        forward,
        _fake,
        f"(Tensor gy, Tensor? glast, {_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor)",
        backward,
        _fake_backward,
        _setup,
        gradients,
        kind=kind,
        devices=devices,
    )

    @op.implementation(kind, refuse)
    def run(
        x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, state: Tensor, reset: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """y (B, L, E) and the last K - 1 existing inputs (B, K-1, E)."""
        arguments = (x, weight.float(), gate.floats(bias), state, reset, mask, activation == "silu")
        return forward(*arguments) if gate.direct(*arguments[:-1]) else conv(*arguments)
