"""What a query sees: causal attention on torch's kernel under resets, masks, a window and a cache, in blocks of queries.

Slots of a call: C cached ones, then its L positions, the existing ones first. So the cache is directly followed by what exists, the
distance of two slots is a number of existing positions, and what does not exist stands behind every query that counts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from statescan.timeline import Timeline

BLOCK = 1024
"""Queries of one call of the kernel: a mask has this many rows at most, and a window reads only its own keys."""


class Sight(NamedTuple):
    """A timeline and a cache, as attention needs them; int64 throughout. None: there is nothing of the kind."""

    position: Tensor
    """(B, L): existing positions before each in its document."""
    last: Tensor
    """(B,): existing positions since the last reset, at the end."""
    before: Tensor | None
    """(B,): the same, before the call."""
    order: Tensor | None
    """(B, L): the position that stands in each slot."""
    slot: Tensor | None
    """(B, L): the slot of the latest existing position; -1 where there is none yet."""
    document: Tensor | None
    """(B, L): resets up to each slot; 0 continues the cache."""

    @staticmethod
    def of(timeline: Timeline | None, before: Tensor | None, batch: int, length: int, device: torch.device) -> Sight:
        """For a batch of this many positions behind ``before`` existing ones a row."""
        line = Timeline() if timeline is None else timeline.expand(batch, length)
        exists = torch.ones(1, length, dtype=torch.long, device=device).expand(batch, length) if line.mask is None else line.mask.long()
        count = exists.cumsum(1)
        position = count - exists
        after = count[:, -1]
        document = None
        if line.reset is None:
            if before is not None:
                position, after = position + before.unsqueeze(1), after + before
        else:
            document = line.reset.long().cumsum(1)
            # What existed before the latest reset; before the first, the cache counts too.
            dropped = torch.where(line.reset, position, 0).cummax(1).values
            if before is not None:
                dropped = torch.where(document > 0, dropped, -before.unsqueeze(1))
            position, after = position - dropped, after - dropped[:, -1]
        order = slot = None
        if line.mask is not None:
            order = torch.argsort((~line.mask).to(torch.uint8), dim=1, stable=True)
            slot = count - 1
            document = None if document is None else document.gather(1, order)
        return Sight(position, after, before, order, slot, document)


class Shared(NamedTuple):
    """Keys and values on the bus: cached and new, in slots, with what may see them."""

    keys: Tensor
    """(B, C + L, Hkv, P)"""
    values: Tensor
    sight: Sight
    window: int | None
    rotary: tuple[float, int] | None
    """Base and width of the angles by which the keys were turned."""


def take(x: Tensor, index: Tensor | None) -> Tensor:
    """x (B, L, H, P) at index (B, M): (B, M, H, P)."""
    return x if index is None else x.gather(1, _wide(index).expand(-1, -1, *x.shape[2:]))


def attend(q: Tensor, keys: Tensor, values: Tensor, sight: Sight, window: int | None, scale: float) -> Tensor:
    """q (B, L, H, P) in the order of time, keys (B, C + L, Hkv, P) and values (B, C + L, Hkv, P') in slots -> (B, L, H, P') in time."""
    length, cached = q.shape[1], keys.shape[1] - q.shape[1]
    grouped = q.shape[2] != keys.shape[2]
    queries, k, v = (t.transpose(1, 2) for t in (take(q, sight.order), keys, values))
    if window is None and sight.before is None and sight.document is None:
        y = F.scaled_dot_product_attention(queries, k, v, is_causal=True, scale=scale, enable_gqa=grouped)
    else:
        # A traced graph serves every length, so it has one block.
        tracing = torch.compiler.is_compiling()
        starts = [0] if tracing else range(0, length, BLOCK)
        parts = []
        for start in starts:
            stop = length if tracing else min(start + BLOCK, length)
            first = 0 if tracing or window is None else max(0, cached + start - window + 1)
            end = cached + stop
            seen = _seen(sight, cached, length, (start, stop), (first, end), window, q.device)
            block = (queries[:, :, start:stop], k[:, :, first:end], v[:, :, first:end])
            parts.append(F.scaled_dot_product_attention(*block, attn_mask=seen, scale=scale, enable_gqa=grouped))
        y = torch.cat(parts, 2) if len(parts) > 1 else parts[0]
    return take(y.transpose(1, 2), None if sight.slot is None else sight.slot.clamp(min=0))


def _seen(
    sight: Sight, cached: int, length: int, rows: tuple[int, int], columns: tuple[int, int], window: int | None, device: torch.device
) -> Tensor:
    """bool (B or 1, 1, rows, columns). Every query sees its own slot at least, so no softmax is over nothing."""
    row = torch.arange(*rows, device=device).unsqueeze(1) + cached
    column = torch.arange(*columns, device=device)
    seen = (column <= row) if window is None else (column <= row) & (column > row - window)
    seen = seen.unsqueeze(0)
    if sight.before is not None:
        seen = seen & (column >= cached - sight.before.unsqueeze(1)).unsqueeze(1)
    if sight.document is not None:
        of_key = F.pad(sight.document, (cached, 0))[:, columns[0] : columns[1]]
        seen = seen & (sight.document[:, rows[0] : rows[1]].unsqueeze(2) == of_key.unsqueeze(1))
    return seen.unsqueeze(1)


def remember(slots: Tensor, length: int, sight: Sight, capacity: int) -> Tensor:
    """The cache after a call: the last ``capacity`` existing entries of ``slots`` (B, C + L, ...) that no reset dropped, zeros before."""
    cached = slots.shape[1] - length
    if sight.slot is None:
        kept = F.pad(slots, (0, 0, 0, 0, capacity - slots.shape[1], 0))  # a negative pad drops the oldest
    else:
        index = cached + sight.slot[:, -1:] + 1 - capacity + torch.arange(capacity, device=slots.device)
        kept = torch.where(_wide(index >= 0), take(slots, index.clamp(min=0)), 0)
    if sight.document is not None:
        dropped = torch.arange(capacity, device=slots.device) < capacity - sight.last.unsqueeze(1)
        kept = torch.where(_wide(dropped & (sight.document.amax(1, keepdim=True) > 0)), 0, kept)
    return kept


def _wide(mask: Tensor) -> Tensor:
    """(B, C) to (B, C, 1, 1)."""
    return mask.unsqueeze(-1).unsqueeze(-1)
