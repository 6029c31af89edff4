"""A mixer at a coarser rate: blocks of positions are pooled, mixed, and spread again one block later.

Paper: Goel, Gu, Donahue and Re, "It's Raw! Audio Generation with State-Space Models", 2022, https://arxiv.org/abs/2202.09729.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from statescan import state as states
from statescan.layers.linear import Linear
from statescan.mixers.sight import Sight, remember, take
from statescan.ops.checks import check_positive, check_shape, state_dtype
from statescan.protocols import Bus, CausalMixer
from statescan.state import state as declare_state
from statescan.timeline import Timeline, hide


@declare_state
class PooledState(NamedTuple):
    """Float32, but for the count, and the inner state."""

    pending: Tensor
    """(B, s-1, D): the last existing inputs, oldest first; those of the block under way are the last position mod s."""
    queue: Tensor
    """(B, s, D): what the inner mixer gives to the block under way; zeros in the first block."""
    position: Tensor
    """int64 (B,): existing positions since the last reset."""
    inner: Any


class Blocks(NamedTuple):
    """Where blocks end and what each position reads, for a call of L positions with M slots of the coarse sequence."""

    first: Tensor
    """int64 (B, M): index in [pending | existing inputs] of the first input of each block; 0 where there is none."""
    line: Timeline
    """Of the coarse sequence (B, M)."""
    source: Tensor
    """int64 (B, L + 1): blocks that ended before each position, and before the end."""
    phase: Tensor
    """int64 (B, L): place of each position within its block."""
    fed: Tensor
    """bool (B, L + 1): a block of the same document ended before."""


class Pooled(CausalMixer):
    """With blocks of s positions, counted from the last reset, and z_k = [x_{ks} .. x_{ks+s-1}]::

        c_k                      = down(z_k)                 a Linear, (D s) -> (e D)
        h_k                      = inner(c)_k
        [y_{(k+1)s} .. +s-1]     = up(h_k)                   a Linear, (e D) -> (D s); y is zero in the first block

    A block is complete only with its last position, so what it says reaches the next block: the output never looks ahead.

    Args:
        d_model: width D.
        inner: factory of the causal mixer (or of a backbone with its contract) at the coarse rate, given the width e D.
        pool: block size s.
        expand: e.

    Shapes: (B, L, D) -> (B, L, D), any L. State: :class:`PooledState`; rows may stand at different places of their blocks. Chunks at one
    place and without resets or holes are reshaped, and the inner mixer runs on whole sequences; else blocks are gathered, and it runs
    under a mask. A step in which no row completes a block leaves it alone.
    """

    causal_tolerance = 1e-5

    def __init__(self, d_model: int, inner: Callable[[int], nn.Module], pool: int = 4, expand: int = 2) -> None:
        super().__init__()
        check_positive(d_model=d_model, expand=expand)
        if pool < 2:
            raise ValueError(f"pool must be at least 2 positions; got {pool}")
        self.d_model, self.pool = d_model, pool
        self.down = Linear(d_model * pool, d_model * expand)
        self.inner = inner(d_model * expand)
        self.up = Linear(d_model * expand, d_model * pool)

    def forward(
        self,
        x: Tensor,
        timeline: Timeline | None = None,
        *,
        state: PooledState | None = None,
        return_state: bool = False,
        bus: Bus | None = None,
    ) -> Any:
        check_shape("x", x, ("B", "L", self.d_model))
        line = Timeline() if timeline is None else timeline.without_interval(type(self).__name__).expand(x.shape[0], x.shape[1])
        x = hide(x, line)
        place = self._place(line, state)
        inner = None if state is None else state.inner  # None: a mixer that convolves where a sequence begins does so
        state = self.init_state(x.shape[0], device=x.device) if state is None else state
        y, last = self._gather(x, line, state, inner, bus) if place is None else self._reshape(x, place, state, inner, bus)
        y = hide(y.to(x.dtype), line)
        return (y, last) if return_state else y

    def init_state(
        self,
        batch_size: int,
        *,
        space: Sequence[int] = (),
        capacity: int | None = None,
        context: Any = None,
        device: torch.device | str | None = None,
    ) -> PooledState:
        """Zeros, nothing seen, and the inner mixer's."""
        like = self.down.bias
        pending, queue = (
            torch.zeros(batch_size, n, self.d_model, dtype=state_dtype(like), device=like.device if device is None else device)
            for n in (self.pool - 1, self.pool)
        )
        inner = self.inner.init_state(batch_size, space=space, capacity=capacity, context=context, device=device)  # type: ignore[operator]
        return PooledState(pending, queue, torch.zeros(batch_size, dtype=torch.long, device=pending.device), inner)

    # -- the two Linears ----------------------------------------------------------------------------------------------------

    def _coarse(self, blocks: Tensor, line: Timeline | None, inner: Any, bus: Bus | None) -> tuple[Tensor, Any]:
        """Blocks (B, M, s, D) -> what they give to the next ones, (B, M, s, D), and the inner state. M >= 1."""
        joined = blocks.transpose(2, 3).flatten(2)  # channel by channel, as checkpoints have it
        h, inner = self.inner(self.down(joined.to(self.down.bias.dtype)), line, state=inner, return_state=True, bus=bus)
        return self.up(h.to(self.up.bias.dtype)).unflatten(-1, (self.d_model, self.pool)).transpose(2, 3), inner

    # -- all rows at one place, every position exists -----------------------------------------------------------------------

    def _place(self, line: Timeline, state: PooledState | None) -> int | None:
        """Where in its block every row stands, if that is one place; a traced graph must not depend on it."""
        if torch.compiler.is_compiling() or line.reset is not None or line.mask is not None:
            return None
        if state is None:
            return 0
        places = (state.position % self.pool).tolist()
        return places[0] if len(set(places)) == 1 else None

    def _reshape(self, x: Tensor, place: int, state: PooledState, before: Any, bus: Bus | None) -> tuple[Tensor, PooledState]:
        size, length = self.pool, x.shape[1]
        z = torch.cat([state.pending.to(x.dtype), x], 1)
        count = (place + length) // size
        queue, inner = state.queue, states.clone(state.inner)
        if count:
            first = size - 1 - place
            given, inner = self._coarse(z[:, first : first + count * size].unflatten(1, (count, size)), None, before, bus)
            queue = torch.cat([queue, given.to(queue.dtype).flatten(1, 2)], 1)
        last = PooledState(z[:, length:].to(queue.dtype), queue[:, count * size :].clone(), state.position + length, inner)
        return queue[:, place : place + length], last

    # -- rows of any kind ---------------------------------------------------------------------------------------------------

    def _gather(self, x: Tensor, line: Timeline, state: PooledState, before: Any, bus: Bus | None) -> tuple[Tensor, PooledState]:
        batch, length, _ = x.shape
        sight = Sight.of(line, state.position, batch, length, x.device)
        z = torch.cat([state.pending.to(x.dtype), take(x.unsqueeze(2), sight.order).squeeze(2)], 1)
        blocks = self._blocks(line, sight)
        queue, inner = state.queue.unsqueeze(1), states.clone(state.inner)
        if torch.compiler.is_compiling() or _any(blocks.line.mask) or _any(blocks.line.reset):
            rows = torch.stack([_rows(z, blocks.first + i) for i in range(self.pool)], dim=2)
            given, inner = self._coarse(rows, blocks.line, before, bus)
            queue = torch.cat([queue, given.to(queue.dtype)], 1)
        # what each position reads: one place of one block; the last column is the block under way at the end, whole
        flat = queue.flatten(1, 2)
        at = blocks.source[:, :-1] * self.pool + blocks.phase
        y = torch.where(blocks.fed[:, :-1, None], _rows(flat, at), 0)
        under_way = blocks.source[:, -1:] * self.pool + torch.arange(self.pool, device=x.device)
        pending = remember(z.unsqueeze(2), length, sight, self.pool - 1).squeeze(2)
        return y, PooledState(
            pending.to(queue.dtype), torch.where(blocks.fed[:, -1:, None], _rows(flat, under_way), 0), sight.last, inner
        )  # fmt: skip

    def _blocks(self, line: Timeline, sight: Sight) -> Blocks:
        size, (batch, length) = self.pool, sight.position.shape
        here = torch.arange(length, device=sight.position.device).expand(batch, length)
        exists = torch.ones_like(here, dtype=torch.bool) if line.mask is None else line.mask
        phase = sight.position % size
        ends = exists & (phase == size - 1)
        ended = ends.long().cumsum(1)
        source = torch.cat([torch.zeros_like(ended[:, :1]), ended], 1)
        # One slot more than blocks can end, where resets are: the last of them may come after the last block.
        slots = (length + size - 1) // size + (0 if line.reset is None else 1)
        slot_of = torch.where(ends, ended - 1, slots)  # what ends no block goes to a slot that is dropped
        standing = here if sight.slot is None else sight.slot.clamp(min=0)
        first = torch.zeros(batch, slots + 1, dtype=torch.long, device=here.device).scatter(1, slot_of, standing)[:, :slots]
        present = torch.arange(slots, device=here.device) < ended[:, -1:]
        fed, reset = torch.cat([sight.position, sight.last.unsqueeze(1)], 1) >= size, None
        if line.reset is not None:
            segment = line.segments()
            fed = fed | (torch.cat([segment, segment[:, -1:]], 1) == 0)
            # a reset holds for the block that ends next
            counts = torch.zeros(batch, slots, dtype=torch.long, device=here.device)
            reset = counts.scatter_add(1, source[:, :-1], line.reset.long()) > 0
        else:
            fed = torch.ones_like(fed)
        return Blocks(first, Timeline(reset, present), source, phase, fed)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """x (B, N, D) at index (B, L): (B, L, D)."""
    return x.gather(1, index.unsqueeze(2).expand(-1, -1, x.shape[2]))


def _any(field: Tensor | None) -> bool:
    return field is not None and bool(field.any())
