"""Writes the instructions of a decoding step, and keeps alive and watches every tensor that they address."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from statescan.layers import CausalConv1d, DeltaProjection, OffsetRMSNorm, QuantLinear, RMSNorm
from statescan.ops import native_gate as gate
from statescan.ops.native_gate import view

OUTPUT = -1
"""Target of the product that makes the logits."""
_ALIGN = 16
_WEIGHTS = (torch.float32, torch.bfloat16)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Unplain(Exception):
    """Why a module must be called rather than read: the sentence."""


class Builder:
    """One native segment. Activations are float32 rows of a workspace; :meth:`rows` reserves a place in a row and returns its offset."""

    def __init__(self, workspace: Workspace) -> None:
        assert gate.module is not None
        self.workspace = workspace
        self.program = gate.module.Program()
        self.state_shapes: list[tuple[int, ...]] = []
        self.watched: list[tuple[dict[str, Any], str]] = []
        self.weights = 0
        """Numbers in the matrices that a row is multiplied by."""
        self._kept: list[Tensor] = []

    # -- what a module may be -----------------------------------------------------------------------------------------------

    def read(self, module: nn.Module, *kinds: type[nn.Module]) -> None:
        """Raises :class:`Unplain` unless the module is exactly of such a type and nothing else watches or replaces its call."""
        name = type(module).__name__
        if type(module) not in kinds:
            raise Unplain(f"{name} is not {' or '.join(kind.__name__ for kind in kinds)}")
        if any(getattr(module, hooks) for hooks in _HOOKS):
            raise Unplain(f"a {name} has hooks")
        if "forward" in module.__dict__:
            raise Unplain(f"the forward of a {name} was replaced")

    def parameter(self, module: nn.Module, name: str) -> Tensor | None:
        """A parameter or buffer, from now on watched for changes."""
        tensor = getattr(module, name)
        if tensor is None:
            return None
        if type(tensor) not in (Tensor, nn.Parameter):
            raise Unplain(f"{name} of a {type(module).__name__} is a {type(tensor).__name__}")
        if tensor.device.type != "cpu":
            raise Unplain(f"{name} of a {type(module).__name__} is on {tensor.device}")
        if tensor.is_inference():
            raise Unplain(f"{name} of a {type(module).__name__} was made in inference mode, where changes leave no trace")
        self.watched.append((module._parameters if name in module._parameters else module._buffers, name))
        return tensor.detach()

    def _keep(self, tensor: Tensor | None) -> Tensor | None:
        if tensor is not None:
            self._kept.append(tensor)
        return tensor

    def floats(self, module: nn.Module, name: str) -> Tensor | None:
        """A small parameter in float32, contiguous: itself where it is so."""
        tensor = self.parameter(module, name)
        return None if tensor is None else tensor.float().contiguous()

    def _weight(self, module: nn.Module) -> Tensor:
        weight = self.parameter(module, "weight")
        assert weight is not None
        if weight.dtype not in _WEIGHTS or weight.stride(-1) != 1:
            raise Unplain(f"the weight of a {type(module).__name__} is {weight.dtype} with strides {tuple(weight.stride())}")
        return weight

    # -- places ---------------------------------------------------------------------------------------------------------------

    def rows(self, width: int) -> int:
        """Offset of a new place of so many floats in a workspace row."""
        return self.workspace.reserve(width)

    def at(self, offset: int, *strides: int) -> tuple[int, ...]:
        """A View of a place for an op's kernel: the row's stride is filled in when the program runs; then a time stride of nothing."""
        return (4 * offset, 0, 0, 0, *strides)

    def state(self, *shape: int) -> tuple[int, ...]:
        """A View of the next state, shape without the batch."""
        self.state_shapes.append(shape)
        return (len(self.state_shapes) - 1, 0, *torch.empty((1, *shape), device="meta").stride())

    # -- instructions -----------------------------------------------------------------------------------------------------------

    def embed(self, module: nn.Module, target: int) -> None:
        """A row of the table for each id."""
        self.read(module, nn.Embedding)
        assert isinstance(module, nn.Embedding)
        if module.max_norm is not None:
            raise Unplain("an Embedding with max_norm changes its weight")
        self.program.embed(target, module.embedding_dim, module.num_embeddings, view(self._keep(self._weight(module))))

    def norm(self, module: nn.Module, source: int, target: int) -> None:
        """RMSNorm, its weight offset or not."""
        self.read(module, RMSNorm, OffsetRMSNorm)
        assert isinstance(module, RMSNorm)
        weight = self._weight(module)
        if isinstance(module, OffsetRMSNorm):
            weight = 1 + weight.float()
        self._keep(weight)
        self.program.norm(source, target, weight.numel(), view(weight), module.eps)

    def linear(self, module: nn.Module, source: int, target: int, *, add: bool = False) -> None:
        """target = W source + bias, or added to what is there. The weight is read where it lies, quantised or not."""
        self.read(module, nn.Linear, DeltaProjection, QuantLinear)
        assert isinstance(module, nn.Linear)
        group, scale = 0, None
        if isinstance(module, QuantLinear):
            group, scale, weight = module.group_size, self.parameter(module, "scale"), self.parameter(module, "weight")
        else:
            weight = self._weight(module)
        for tensor in (weight, scale, bias := self.floats(module, "bias")):
            self._keep(tensor)
        self.weights += module.in_features * module.out_features
        self.program.linear(source, target, add, module.out_features, module.in_features, group, view(weight), view(scale), view(bias))

    def conv(self, module: nn.Module, source: int, target: int) -> None:
        """The short convolution with its state (K-1, width)."""
        self.read(module, CausalConv1d)
        assert isinstance(module, CausalConv1d)
        weight, bias = self.floats(module, "weight"), self._keep(self.floats(module, "bias"))
        assert weight is not None
        width, _, taps = weight.shape
        weight = self._keep(weight.view(width, taps))
        state = self.state(taps - 1, width)
        self.program.conv(
            module.activation == "silu", (1, 1, width, taps), self.at(source, 1), view(weight), view(bias), state, self.at(target, 1), state
        )

    def selective_scan(
        self, x: int, delta: int, A: Tensor, B: int, C: int, D: Tensor | None, gate_by: int, target: int, *, softplus: bool
    ) -> None:
        """One position of the gated selective scan; A (E, N), state (E, N)."""
        width, n = A.shape
        self._keep(A), self._keep(D)
        state = self.state(width, n)
        e, bc = (1,), (n, 1)
        self.program.selective_scan(
            softplus, (1, 1, width, n, 1), self.at(x, *e), self.at(delta, *e), view(A), self.at(B, *bc), self.at(C, *bc), view(D),
            self.at(gate_by, *e), (), state, self.at(target, *e), state,
        )  # fmt: skip

    def ssd(
        self, x: int, delta: int, A: Tensor, B: int, C: int, D: Tensor | None, bias: Tensor | None, target: int,
        *, heads: int, p: int, n: int, groups: int, softplus: bool, limit: tuple[float, float],
    ) -> None:  # fmt: skip
        """One position of ssd; A (H,), D (H, P), state (H, P, N)."""
        self._keep(A), self._keep(D), self._keep(bias)
        state = self.state(heads, p, n)
        self.program.ssd(
            softplus, *limit, (1, 1, heads, p, n, groups), self.at(x, p, 1), self.at(delta, 1), view(A), self.at(B, n, 1), self.at(C, n, 1),
            view(D), view(bias), state, self.at(target, p, 1), state,
        )  # fmt: skip

    def gated_norm(
        self, source: int, gate_by: int, target: int, width: int, weight: Tensor | None, *, groups: int, eps: float, gate_last: bool
    ) -> None:
        """The gated norm; without a weight the gate alone. It works in place on the source."""
        self.program.gated_norm(source, gate_by, target, width, groups, view(self._keep(weight)), eps, gate_last)

    def gated_unit(self, source: int, gate_by: int, target: int, width: int) -> None:
        """target = source * silu(gate)."""
        self.program.gated_unit(source, gate_by, target, width)


class Workspace:
    """Places in a row of activations: those before :meth:`mark` stay, those after it are given again after :meth:`release`."""

    def __init__(self) -> None:
        self.stride = self._next = self._kept = 0

    def reserve(self, width: int) -> int:
        """Offset of so many floats, aligned."""
        offset = self._next
        self._next += -(-width // _ALIGN) * _ALIGN
        self.stride = max(self.stride, self._next)
        return offset

    def mark(self) -> None:
        """What was reserved so far stays."""
        self._kept = self._next

    def release(self) -> None:
        """What was reserved since the mark is free again."""
        self._next = self._kept
