"""The scalar LSTM as a layer: memory cells that see their own last output, which no parallel mixer does.

Paper: Beck et al., "xLSTM: Extended Long Short-Term Memory", 2024, https://arxiv.org/abs/2405.04517.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from statescan.layers import CausalConv1d
from statescan.layers.grouped import BlockLinear
from statescan.layers.norm import GroupLayerNorm
from statescan.mixers.gla import zeros_for
from statescan.mixers.mlstm import small_init
from statescan.ops import slstm
from statescan.ops.checks import check_positive, state_dtype
from statescan.ops.slstm import CellState
from statescan.parameters import Dynamic
from statescan.protocols import Bus, CausalMixer
from statescan.registry import register
from statescan.state import state as declare_state
from statescan.timeline import Timeline, hide


@declare_state
class SLSTMState(NamedTuple):
    """Float32. c and n are divided by e^{m}; cells with n = 0 are empty."""

    conv: Tensor
    """(B, K-1, D): the last existing inputs of the convolution, oldest first."""
    h: Tensor
    """(B, H, P): the last output of the cells."""
    c: Tensor
    """(B, H, P)"""
    n: Tensor
    """(B, H, P)"""
    m: Tensor
    """(B, H, P)"""


class SLSTMCell(Dynamic):
    """The op with its parameters, named and shaped as in the public code (its CPU form; the rows of the CUDA form stand otherwise).

    ``_recurrent_kernel_`` (H, 4P, P): per head the rows of i, f, z and o; ``_bias_`` (4 D,): i, f, z and o.
    """

    dynamics = ("_bias_",)

    def __init__(self, width: int, num_heads: int, depth: float) -> None:
        super().__init__()
        cells = width // num_heads
        self._recurrent_kernel_ = nn.Parameter(torch.zeros(num_heads, 4 * cells, cells))
        place = torch.arange(cells) / max(cells - 1, 1)
        bias = torch.zeros(4, num_heads, cells)
        bias[1] = 5 - 12 * place ** (0.3 + 1.3 * depth)
        self._bias_ = nn.Parameter(bias.flatten())

    def forward(self, gates: Tensor, timeline: Timeline | None, state: CellState | None) -> tuple[Tensor, CellState]:
        """gates (B, L, 4, D) -> (B, L, D) and the last state."""
        heads, _, cells = self._recurrent_kernel_.shape
        raw = gates.to(state_dtype(gates)) + self._bias_.view(4, -1)
        R = self._recurrent_kernel_.unflatten(1, (4, cells)).transpose(0, 1)
        y, last = slstm(raw.unflatten(-1, (heads, cells)), R, state=state, timeline=timeline, return_state=True)
        return y.flatten(-2).to(gates.dtype), last


@register
class SLSTM(CausalMixer):
    """The layer of the original xLSTM (a feed-forward layer of its own follows it), for the op :func:`~statescan.ops.slstm.slstm`::

        c = silu(conv1d(x))
        h = slstm(W_i c, W_f c, W_z x, W_o x)                                   W of one block a head
        y = group_norm(h)                                                       over each head

    Beware of two names in checkpoints: W_i is stored as ``fgate`` and W_f as ``igate``. The public code hands them over in that order, so
    names here follow it too; ``_bias_`` and ``_recurrent_kernel_`` stand in the order i, f, z, o that one expects.

    Args:
        d_model: width D.
        num_heads: heads H, a divisor of D.
        conv1d_kernel_size: taps.
        depth: where in the stack the layer stands, 0 for the first block to 1 for the last: deeper ones forget more slowly at first.
        norm_eps: of the norm.

    Shapes: (B, L, D) -> (B, L, D). State: :class:`SLSTMState`. Parameter names are those of the public code, but for its
    ``conv1d.conv``, which is ``conv1d`` here.
    """

    examples = ({"num_heads": 4, "conv1d_kernel_size": 3, "depth": 1.0},)

    def __init__(self, d_model: int, num_heads: int = 4, conv1d_kernel_size: int = 4, depth: float = 0.0, norm_eps: float = 1e-5) -> None:
        super().__init__()
        check_positive(d_model=d_model, num_heads=num_heads, conv1d_kernel_size=conv1d_kernel_size)
        if d_model % num_heads:
            raise ValueError(f"num_heads must divide d_model; got {num_heads} and {d_model}")
        if not 0 <= depth <= 1:
            raise ValueError(f"depth lies between 0, the first block, and 1, the last; got {depth}")
        self.d_model, self.num_heads = d_model, num_heads
        self.conv1d = CausalConv1d(d_model, conv1d_kernel_size, activation="silu")
        self.igate, self.fgate, self.zgate, self.ogate = (BlockLinear(d_model, num_heads) for _ in range(4))
        self.slstm_cell = SLSTMCell(d_model, num_heads, depth)
        self.group_norm = GroupLayerNorm(d_model, num_heads, norm_eps, offset=True)
        small_init(d_model, self.igate, self.fgate, self.zgate, self.ogate)

    def forward(
        self,
        x: Tensor,
        timeline: Timeline | None = None,
        *,
        state: SLSTMState | None = None,
        return_state: bool = False,
        bus: Bus | None = None,
    ) -> Any:
        if timeline is not None:
            timeline = timeline.without_interval(type(self).__name__)
        x = hide(x, timeline)
        c, tail = self.conv1d(x, timeline, state=None if state is None else state.conv)
        gates = torch.stack([self.fgate(c), self.igate(c), self.zgate(x), self.ogate(x)], dim=2)  # i, f, z, o: the names are swapped
        h, last = self.slstm_cell(gates, timeline, None if state is None else state[1:])
        y = hide(self.group_norm(h), timeline)
        return (y, SLSTMState(tail, *last)) if return_state else y

    def init_state(
        self,
        batch_size: int,
        *,
        space: Sequence[int] = (),
        capacity: int | None = None,
        context: Any = None,
        device: torch.device | str | None = None,
    ) -> SLSTMState:
        """Zeros: empty cells."""
        weight, heads = self.conv1d.weight, self.num_heads
        tail = zeros_for(weight, device, batch_size, weight.shape[2] - 1, self.d_model)
        h, c, n, m = (zeros_for(weight, device, batch_size, heads, self.d_model // heads) for _ in range(4))
        return SLSTMState(tail, h, c, n, m)
