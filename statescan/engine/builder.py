"""Writes the instructions of a decoding step, and keeps alive and watches every tensor that they address."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from statescan.engine import rows
from statescan.engine.rows import Row
from statescan.layers import CausalConv1d, DeltaProjection, Embedding, LayerNorm, Linear, OffsetRMSNorm, QuantLinear, RMSNorm
from statescan.layers.grouped import BlockLinear
from statescan.layers.linear import has_hooks
from statescan.layers.norm import GroupLayerNorm
from statescan.ops import native_gate as gate
from statescan.ops.native_gate import view

OUTPUT = -1
"""Target of the product that makes the logits."""
_ALIGN = 16
_WEIGHTS = (torch.float32, torch.bfloat16)


class Unplain(Exception):
    """Why a module must be called rather than read: the sentence."""


class Builder:
    """One native segment. Activations are float32 rows of a workspace; :meth:`rows` reserves a place in a row and returns its offset."""

    def __init__(self, workspace: Workspace) -> None:
        assert gate.module is not None
        self.workspace = workspace
        self.program = gate.module.Program()
        self.state_shapes: list[tuple[int, ...]] = []
        """Without the batch; -1 is the number of entries of a cache."""
        self.counts: set[int] = set()
        """Those of the states that are int64."""
        self.watched: list[tuple[dict[str, Any], str]] = []
        self.products = 0
        """Numbers in the matrices that a row is multiplied by."""
        self._kept: list[Tensor] = []

    # -- what a module may be -----------------------------------------------------------------------------------------------

    def read(self, module: nn.Module, *kinds: type[nn.Module]) -> None:
        """Raises :class:`Unplain` unless the module is exactly of such a type and nothing else watches or replaces its call."""
        name = type(module).__name__
        if type(module) not in kinds:
            raise Unplain(f"{name} is not {' or '.join(dict.fromkeys(kind.__name__ for kind in kinds))}")
        if has_hooks(module):
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

    def given(self, module: nn.Module, name: str) -> Tensor:
        """A small parameter in float32, flat, from now on watched for changes."""
        tensor = self.parameter(module, name)
        if tensor is None:
            raise Unplain(f"a {type(module).__name__} has no {name}")
        return tensor.float().flatten()

    def floats(self, module: nn.Module, name: str) -> Tensor | None:
        """A small parameter in float32, contiguous: itself where it is so."""
        tensor = self.parameter(module, name)
        return None if tensor is None else tensor.float().contiguous()

    def weight(self, module: nn.Module, name: str = "weight") -> Tensor:
        """A matrix, read where it lies, from now on watched for changes."""
        weight = self.parameter(module, name)
        assert weight is not None
        if weight.dtype not in _WEIGHTS or weight.stride(-1) != 1:
            raise Unplain(f"the {name} of a {type(module).__name__} is {weight.dtype} with strides {tuple(weight.stride())}")
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
        return (self.next_state(*shape), 0, *torch.empty((1, *shape), device="meta").stride())

    def next_state(self, *shape: int) -> int:
        """The number of the next state, shape without the batch."""
        self.state_shapes.append(shape)
        return len(self.state_shapes) - 1

    def memory(self, *shape: int) -> tuple[Row, Row]:
        """The next state as rows: before the step, and where to leave it. What is left there may overwrite what was before."""
        number, width = self.next_state(*shape), torch.Size(shape).numel()
        return rows.stored(self, number, width, after=False), rows.stored(self, number, width, after=True)

    def row(self, width: int, at: int | None = None) -> Row:
        """A new place in a row, or a known one."""
        return Row(self, width, self.rows(width) if at is None else at)

    def fixed(self, tensor: Tensor) -> Row:
        """Numbers that all rows share."""
        kept = self._keep(tensor.float().contiguous())
        assert kept is not None
        return rows.fixed(self, kept)

    @contextmanager
    def beside(self) -> Iterator[None]:
        """The instructions written here read nothing that another of them writes."""
        self.program.group(True)
        yield
        self.program.group(False)

    # -- steps of a row -----------------------------------------------------------------------------------------------------------

    def step(
        self,
        name: str,
        a: Row,
        b: Row | float | None = None,
        *,
        to: Row | None = None,
        width: int | None = None,
        sizes: tuple[int, ...] = (),
    ) -> Row:
        """One step; see :mod:`statescan.engine.rows`."""
        if isinstance(b, float | int):
            b = self.fixed(torch.tensor([float(b)])).spread(a.width)
        width = a.width if width is None else width
        assert sizes or b is None or b.width == width, f"{name} of {width} and {b.width} numbers"
        to = self.row(width) if to is None else to
        rows.write(self, name, width, a, b, to, sizes)
        return to

    def count(self) -> Row:
        """The next state, int64, counts the positions: their number before this one."""
        self.counts.add(len(self.state_shapes))
        before, after = self.memory()
        return self.step("position", before, after, to=self.row(1))

    def normed(self, module: nn.Module, x: Row) -> Row:
        """RMSNorm of each part of the row that is as wide as its weight; LayerNorm of the row; GroupLayerNorm."""
        if type(module) in (LayerNorm, nn.GroupNorm, GroupLayerNorm):
            self.read(module, LayerNorm, nn.GroupNorm, GroupLayerNorm)
            groups = {LayerNorm: 1, nn.GroupNorm: getattr(module, "num_groups", 1)}.get(type(module), getattr(module, "groups", 1))
            size = x.width // groups
            x = x.centred(size).rms(size, module.eps)  # type: ignore[arg-type]
        else:
            self.read(module, RMSNorm, OffsetRMSNorm)
            assert isinstance(module, RMSNorm)
            x = x.rms(module.weight.numel(), module.eps)
        weight = self.given(module, "weight")
        if isinstance(module, OffsetRMSNorm) or getattr(module, "offset", False):
            weight = 1 + weight
        x = x * self.fixed(weight).again(x.width // weight.numel())
        return x if getattr(module, "bias", None) is None else x + self.fixed(self.given(module, "bias"))

    # -- instructions -----------------------------------------------------------------------------------------------------------

    def embed(self, module: nn.Module, target: int) -> None:
        """A row of the table for each id."""
        self.read(module, nn.Embedding, Embedding)
        assert isinstance(module, nn.Embedding)
        if module.max_norm is not None:
            raise Unplain("an Embedding with max_norm changes its weight")
        self.program.embed(target, module.embedding_dim, module.num_embeddings, view(self._keep(self.weight(module))))

    def norm(self, module: nn.Module, source: int, target: int) -> None:
        """RMSNorm, its weight offset or not; LayerNorm as steps of a row."""
        if isinstance(module, LayerNorm | GroupLayerNorm):
            width = module.weight.numel()
            self.normed(module, self.row(width, source)).copy(self.row(width, target))
            return
        self.read(module, RMSNorm, OffsetRMSNorm)
        assert isinstance(module, RMSNorm)
        weight = self.weight(module)
        if isinstance(module, OffsetRMSNorm):
            weight = 1 + weight.float()
        self._keep(weight)
        self.program.norm(source, target, weight.numel(), view(weight), module.eps)

    def _linear(self, module: nn.Module) -> nn.Linear:
        self.read(module, nn.Linear, Linear, DeltaProjection, QuantLinear)
        assert isinstance(module, nn.Linear)
        return module

    def linear(self, module: nn.Module, source: int, target: int, *, add: bool = False) -> None:
        """target = W source + bias, or added to what is there. The weight is read where it lies, quantised or not."""
        module = self._linear(module)
        group, scale = 0, None
        if isinstance(module, QuantLinear):
            group, scale, weight = module.group_size, self.parameter(module, "scale"), self.parameter(module, "weight")
        else:
            weight = self.weight(module)
        for tensor in (weight, scale, bias := self.floats(module, "bias")):
            self._keep(tensor)
        self.products += module.in_features * module.out_features
        self.program.linear(
            source, target, add, module.out_features, module.in_features, group, view(weight), view(scale), view(bias), 1, 0
        )

    def project(self, module: nn.Module, source: Row | int) -> Row:
        """W source + bias, in a new place; also of a block-diagonal Linear."""
        at = source.at if isinstance(source, Row) else source
        if isinstance(module, BlockLinear):
            self.read(module, BlockLinear)
            return self.blocks(self.weight(module), at)
        target = self.row(self._linear(module).out_features)
        self.linear(module, at, target.at)
        return target

    def blocks(self, weight: Tensor, source: int, target: Row | None = None, bias: Tensor | None = None) -> Row:
        """A product by weight (blocks, out, in): each block maps its part of the row; added to a target that is given."""
        count, out, width = weight.shape
        self._keep(weight), self._keep(bias)
        self.products += weight.numel()
        add, target = target is not None, self.row(count * out) if target is None else target
        flat = (weight.data_ptr(), *view(weight)[1:2], weight.stride(1), 1)
        self.program.linear(source, target.at, add, count * out, width, 0, flat, (), view(bias), count, weight.stride(0))
        return target

    def transposed(self, module: nn.Module, name: str, source: Row) -> Row:
        """The product with a matrix stored (in, out), or several (blocks, in, out), of which it keeps a copy."""
        weight = self.parameter(module, name)
        assert weight is not None
        if weight.dtype not in _WEIGHTS:
            raise Unplain(f"{name} of a {type(module).__name__} is {weight.dtype}")
        return self.blocks(weight.view(-1, *weight.shape[-2:]).mT.contiguous(), source.at)

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

    def matrix_step(
        self, q: Row, key: Row, value: Row, state: tuple[int, int, int], *, decay: Row | None = None, beta: Row | None = None,
        read: Row | None = None, groups: int | None = None, writes: int = 1, queries: int = 1, scale: float | None = None,
        transposed: bool = False, number: int | None = None,
    ) -> Row:  # fmt: skip
        """One position of linear attention or the delta rule; ``decay`` holds factors, one a head or a key channel.

        q (queries, groups, K), key (writes, groups, K), value (writes, H, V), beta (writes, H), read (H, K); state (H, K, V), or (H, V, K)
        if transposed. See native/program.h.
        """
        heads, keys, width = state if not transposed else (state[0], state[2], state[1])
        groups = heads if groups is None else groups
        y = self.row(queries * heads * width)
        places = tuple(-1 if row is None else row.at for row in (q, key, value, beta, decay, read, y))
        by_channel = decay is not None and decay.width == heads * keys
        self.program.matrix_step(
            by_channel, transposed, keys**-0.5 if scale is None else scale, (heads, groups, keys, width, writes, queries), places,
            self.next_state(*state) if number is None else number,
        )  # fmt: skip
        return y

    def log_linear(
        self, q: Row, k: Row, v: Row, weight: Row, log_decay: Row, beta: Row | None, state: tuple[int, int, int, int], scale: float
    ) -> Row:
        """One position of log-linear attention, state (H, levels, K, V) and its positions; q and k (groups, K), weight (H, levels)."""
        heads, levels, keys, width = state
        y, kept = self.row(v.width), self.state(*state)
        places = [self.at(row.at, each) for row, each in ((q, keys), (k, keys), (v, width), (weight, levels), (log_decay, 1))]
        sizes = (1, 1, heads, q.width // keys, keys, width, levels)
        self.program.log_linear(
            scale, sizes, *places, () if beta is None else self.at(beta.at, 1), kept, len(self.state_shapes), self.at(y.at, width)
        )
        self.count()
        return y

    def mesa(self, q: Row, k: Row, v: Row, beta: Row, log_decay: Row, ridge: Tensor, width: int, iterations: int) -> Row:
        """One position of the mesa layer, ridge (H, width) and two states (H, width, width)."""
        heads = v.width // width
        y, G, S = self.row(v.width), self.state(heads, width, width), self.state(heads, width, width)
        places = [self.at(row.at, width) for row in (q, k, v)] + [self.at(row.at, 1) for row in (beta, log_decay)]
        kept = self._keep(ridge.float().contiguous())
        self.program.mesa(iterations, (1, 1, heads, width, width), *places, view(kept), G, S, self.at(y.at, width))
        return y

    def attend(
        self, q: Row, k: Row, v: Row, count: Row, keys: int, values: int, *, heads: int, kv_heads: int, window: int | None, scale: float
    ) -> Row:
        """Softmax attention behind the caches ``keys`` and ``values``, numbers of states, which then hold k and v too."""
        y = self.row(q.width)
        size = q.width // heads
        self.program.attend(scale, (heads, kv_heads, size, window or 0), (q.at, k.at, v.at, y.at, count.at), keys, values)
        return y

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
        self.shelf: dict[str, int] = {}
        """Places that stay, for what layers may leave for those above them."""
        self.bus: dict[str, int] = {}
        """Those of them that the program fills."""

    def trial(self) -> Workspace:
        """Another one that knows the same of layers below."""
        other = Workspace()
        other.shelf, other.bus = dict(self.shelf), dict(self.bus)
        return other

    def lend(self, name: str) -> int:
        """The place on the bus, now filled."""
        self.bus[name] = self.shelf[name]
        return self.bus[name]

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
