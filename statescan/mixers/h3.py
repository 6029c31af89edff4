"""H3: a shift system and a diagonal one with two products between them, in attention's place; and with two long convolutions instead.

Papers: Fu et al., "Hungry Hungry Hippos: Towards Language Modeling with State Space Models", 2022, https://arxiv.org/abs/2212.14052;
Fu et al., "Simple Hardware-Efficient Long Convolutions for Sequence Modeling", 2023, https://arxiv.org/abs/2302.06646.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from statescan import dynamics as dyn
from statescan.layers.linear import Linear
from statescan.mixers.long_conv import KernelInit, LongConv, WindowState
from statescan.mixers.s4d import S4D, S4DState
from statescan.mixers.shift import Shift, TapsState
from statescan.ops.checks import check_positive, check_shape
from statescan.protocols import Bus, CausalMixer, State
from statescan.registry import register
from statescan.state import state as declare_state
from statescan.timeline import Timeline, hide


class KeyValueMemory(CausalMixer):
    """What :class:`H3` and :class:`H3Conv` share: projections, the products, and how they pass through the two layers.

    A subclass makes ``shift``, a causal layer of D channels, ``ssm``, one of H channels, and ``out_proj``, and defines how its state holds
    theirs.
    """

    causal_tolerance = 1e-5
    residual_outputs = ("out_proj",)
    shift: CausalMixer
    ssm: CausalMixer
    out_proj: nn.Linear

    def __init__(self, d_model: int, num_heads: int | None) -> None:
        super().__init__()
        num_heads = d_model if num_heads is None else num_heads
        check_positive(d_model=d_model, num_heads=num_heads)
        if d_model % num_heads:
            raise ValueError(f"num_heads must divide d_model; got {num_heads} and {d_model}")
        self.d_model, self.num_heads, self.head_dim = d_model, num_heads, d_model // num_heads
        self.q_proj, self.k_proj, self.v_proj = (Linear(d_model, d_model) for _ in range(3))

    @abstractmethod
    def parts(self, state: State, x: Tensor) -> tuple[Any, Any]:
        """The states of ``shift``, of B rows, and ``ssm``, of B P P rows, from this layer's, checked against x (B, ..., D)."""

    @abstractmethod
    def whole(self, near: Any, far: Any) -> State:
        """This layer's state from those two."""

    def started(self, batch_size: int, device: torch.device | str | None) -> tuple[Any, Any]:
        """The two states before the first position."""
        return self.shift.init_state(batch_size, device=device), self.ssm.init_state(batch_size * self.head_dim**2, device=device)

    def forward(
        self,
        x: Tensor,
        timeline: Timeline | None = None,
        *,
        state: State | None = None,
        return_state: bool = False,
        bus: Bus | None = None,
    ) -> Any:
        check_shape("x", x, ("B", "L", self.d_model))
        line = None if timeline is None else timeline.without_interval(type(self).__name__).expand(x.shape[0], x.shape[1])
        x = hide(x, line)
        near, far = (None, None) if state is None else self.parts(state, x)
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        k, near = self.shift(k, line, state=near, return_state=True)
        q, k, v = (t.unflatten(-1, (self.num_heads, self.head_dim)) for t in (q, k, v))
        products = k.unsqueeze(-1) * v.unsqueeze(-2)  # (B, L, H, P, P)
        rows = products.permute(0, 3, 4, 1, 2).flatten(0, 2)  # every product of a head is a row of its system
        each = None if line is None else line.repeat_interleave(self.head_dim**2)
        memory, far = self.ssm(rows, each, state=far, return_state=True)
        memory = memory.unflatten(0, (x.shape[0], self.head_dim, self.head_dim))  # (B, i, j, L, H)
        o = torch.einsum("blhi,bijlh->blhj", q, memory.to(q.dtype)).flatten(-2)
        y = hide(self.out_proj(o), line)
        return (y, self.whole(near, far)) if return_state else y

    def step(self, x: Tensor, state: State, timeline: Timeline | None = None, bus: Bus | None = None) -> tuple[Tensor, State]:
        """x (B, D); a step of both layers."""
        check_shape("x", x, ("B", self.d_model))
        line = None if timeline is None else timeline.without_interval(type(self).__name__)
        missing = None if line is None or line.mask is None else ~line.mask.unsqueeze(-1)
        x = x if missing is None else x.masked_fill(missing, 0)
        near, far = self.parts(state, x)
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        k, near = self.shift.step(k, near, line)
        q, k, v = (t.unflatten(-1, (self.num_heads, self.head_dim)) for t in (q, k, v))
        rows = (k.unsqueeze(-1) * v.unsqueeze(-2)).permute(0, 2, 3, 1).flatten(0, 2)
        memory, far = self.ssm.step(rows, far, None if line is None else line.repeat_interleave(self.head_dim**2))
        memory = memory.unflatten(0, (x.shape[0], self.head_dim, self.head_dim))
        y = self.out_proj(torch.einsum("bhi,bijh->bhj", q, memory.to(q.dtype)).flatten(-2))
        return (y if missing is None else y.masked_fill(missing, 0)), self.whole(near, far)


@declare_state
class H3State(NamedTuple):
    """Float32."""

    taps: Tensor
    """(B, d-1, D): the last existing keys, oldest first."""
    ssm: Tensor
    """(B, P P, H, N/2, 2): real and imaginary parts of the modes of every product of a head."""


@register
class H3(KeyValueMemory):
    """What a key and a value make together is remembered, and read by a query; heads of P = D / H channels::

        q, k, v = projections of x
        k' = shift(k) + D_k k                            d taps a channel
        m_t[i, j] = S4D(k'[i] v[j])                      one system a head, for all P P products
        o[j] = sum_i q[i] m[i, j],   out = out_proj(o)

    There is no nonlinearity but the products.

    Args:
        d_model: width D.
        num_heads: H; None is D: products of channels, as in the released models.
        d_state: size N of the diagonal systems.
        d_shift: taps d of the shift system.
        init: of the diagonal systems.
        disc: their discretisation: zoh, or bilinear as in the authors' code.
        dt_min, dt_max: initial steps are log-uniform between them, one a head.
        mode: of the diagonal systems: ``auto``, ``conv`` or ``scan``.

    Shapes: (B, L, D) -> (B, L, D). State: :class:`H3State`.
    """

    examples = ({"d_state": 4, "d_shift": 4}, {"num_heads": 16, "d_state": 2, "d_shift": 3, "disc": "zoh", "init": "legs"})

    def __init__(
        self,
        d_model: int,
        num_heads: int | None = None,
        d_state: int = 64,
        d_shift: int = 64,
        *,
        init: dyn.DiagonalInit = "lin",
        disc: Literal["zoh", "bilinear"] = "bilinear",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        mode: Literal["auto", "conv", "scan"] = "auto",
    ) -> None:
        super().__init__(d_model, num_heads)
        self.shift: Shift = Shift(d_model, d_shift, learn_b=True)
        self.ssm: S4D = S4D(
            self.num_heads, d_state, init=init, disc=disc, B_init="constant", dt_min=dt_min, dt_max=dt_max, activation="none",
            final_act="none", mode=mode,
        )  # fmt: skip
        self.ssm.out_proj = nn.Identity()  # type: ignore[assignment]  # heads meet in out_proj alone
        for system in (self.shift, self.ssm):
            system.learning_rates = {name: 1e-3 for name, _ in system.named_parameters(recurse=False)}
        self.out_proj = Linear(d_model, d_model)

    def parts(self, state: State, x: Tensor) -> tuple[TapsState, S4DState]:
        if not isinstance(state, H3State):
            raise ValueError(f"expected an H3State; got a {type(state).__name__}: is it the state of another layer?")
        check_shape("state.ssm", state.ssm, (x.shape[0], self.head_dim**2, self.num_heads, self.ssm.d_state // 2, 2))
        return TapsState(state.taps), S4DState(state.ssm.flatten(0, 1))

    def whole(self, near: TapsState, far: S4DState) -> H3State:
        return H3State(near.inputs, far.ssm.unflatten(0, (-1, self.head_dim**2)))

    def init_state(
        self,
        batch_size: int,
        *,
        space: Sequence[int] = (),
        capacity: int | None = None,
        context: Any = None,
        device: torch.device | str | None = None,
    ) -> H3State:
        """Zeros."""
        return self.whole(*self.started(batch_size, device))


@declare_state
class H3ConvState(NamedTuple):
    """Float32; zeros where nothing was."""

    keys: Tensor
    """(B, K-1, D): the last existing keys, oldest first."""
    products: Tensor
    """(B, P P, K-1, H): the last products of every head."""


@register
class H3Conv(KeyValueMemory):
    """:class:`H3` with two kernels of :class:`LongConv` in the place of its two systems::

        q, k, v = projections of x
        k' = K1 * k + D_k k
        m_t[i, j] = (K2 * p + D p)_t,  p = k'[i] v[j]    one kernel a head, for all P P products
        o[j] = sum_i q[i] m[i, j],   out = out_proj(o)

    The kernels know nothing beyond ``l_max``, and there is no recurrence: streaming keeps two windows of l_max - 1 positions, one of keys
    and one of products, and a step costs l_max products a channel.

    Args:
        d_model: width D.
        num_heads: H; None is D: products of channels.
        l_max: taps K of both kernels.
        lam, kernel_dropout, smooth, init, kernel_lr: of the kernels, see :class:`LongConv`.

    Shapes: (B, L, D) -> (B, L, D), of any L. State: :class:`H3ConvState`.
    """

    gathers_documents = True
    # memory stays undeclared: after 2 l_max - 2 positions nothing of a state is left, but for the rounding of the Fourier transform
    examples = ({"num_heads": 16, "l_max": 4, "lam": 0.001, "smooth": 3},)

    def __init__(
        self,
        d_model: int,
        num_heads: int | None = None,
        l_max: int = 1024,
        *,
        lam: float = 0.003,
        kernel_dropout: float = 0.2,
        smooth: int | None = None,
        init: KernelInit = "random",
        kernel_lr: float = 1e-3,
    ) -> None:
        super().__init__(d_model, num_heads)

        def kernel(width: int) -> LongConv:
            layer = LongConv(
                width, l_max, lam=lam, kernel_dropout=kernel_dropout, smooth=smooth, init=init, kernel_lr=kernel_lr, activation="none",
                final_act="none",
            )  # fmt: skip
            layer.out_proj = nn.Identity()  # type: ignore[assignment]
            return layer

        self.shift: LongConv = kernel(d_model)
        self.ssm: LongConv = kernel(self.num_heads)
        self.out_proj = Linear(d_model, d_model)

    def parts(self, state: State, x: Tensor) -> tuple[WindowState, WindowState]:
        if not isinstance(state, H3ConvState):
            raise ValueError(f"expected an H3ConvState; got a {type(state).__name__}: is it the state of another layer?")
        check_shape("state.products", state.products, (x.shape[0], self.head_dim**2, self.ssm.l_max - 1, self.num_heads))
        return WindowState(state.keys), WindowState(state.products.flatten(0, 1))

    def whole(self, near: WindowState, far: WindowState) -> H3ConvState:
        return H3ConvState(near.inputs, far.inputs.unflatten(0, (-1, self.head_dim**2)))

    def init_state(
        self,
        batch_size: int,
        *,
        space: Sequence[int] = (),
        capacity: int | None = None,
        context: Any = None,
        device: torch.device | str | None = None,
    ) -> H3ConvState:
        """Zeros."""
        return self.whole(*self.started(batch_size, device))
