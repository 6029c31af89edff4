"""Log-linear attention by chunks: a matrix of weighted scores inside a chunk, and the levels handed from chunk to chunk.

What a chunk does to any state before it is one linear map, the same for every level. Chunks begin where the call does, whatever the
position in a document: from a position a to a later one b, what stood on level l comes to stand on level max(l, bit_length(a XOR b)).
Levels that hold nothing are left out: ahead of chunk i all but those of the ones in i's binary digits, if the call begins a document.

Letters: B batch, n chunks, C positions a chunk, H heads, K key channels, V value channels, M levels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from statescan.ops.checks import exactly
from statescan.ops.head_decays import CHUNK, chunks, head_decays
from statescan.ops.log_linear import bit_length, op
from statescan.ops.opaque import opaque
from statescan.ops.positions import existing


@op.implementation("portable")
def portable(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    level_scale: Tensor,
    log_decay: Tensor,
    beta: Tensor | None,
    scale: float,
    state: Tensor,
    position: Tensor,
    before: Tensor,
    after: Tensor,
    reset: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """y (B, L, H, V) and the last state (B, H, levels, K, V)."""
    dtype, members = state.dtype, v.shape[2] // q.shape[2]
    with exactly(v):
        queries, keys = (existing(tensor, mask).to(dtype).repeat_interleave(members, dim=2) for tensor in (q, k))
        values, weights, g = (existing(tensor, mask).to(dtype) for tensor in (v, level_scale, log_decay))
        strength = None if beta is None else existing(beta, mask).to(dtype)
        run = _opaque if torch.compiler.is_compiling() else chunked
        y, last = run(scale * queries, keys, values, weights, g, strength, state, position, before, after, reset)
        return existing(y, mask).to(v.dtype), last


class _Chunk(NamedTuple):
    """All chunks' linear maps, before levels weigh them."""

    scores: Tensor
    """(B, n, H, C, C): from a value to an output."""
    reads: Tensor
    """(B, n, H, C, K): an output's query to the state before the chunk."""
    writes: Tensor
    """(B, n, H, C, K): a value's key in the state behind the chunk."""
    carries: Tensor
    """(B, n, H, 1, 1) or (B, n, H, K, K): from the state before to the one behind."""


def _maps(q: Tensor, k: Tensor, log_decay: Tensor, beta: Tensor | None, reset: Tensor | None, chunk: int) -> _Chunk:
    decays = head_decays(log_decay, reset, chunk)
    q, k = chunks(q, chunk), chunks(k, chunk)
    scores = (q @ k.mT) * decays.within
    reads, arriving = q * decays.entry.unsqueeze(-1), k * decays.arriving.unsqueeze(-1)
    carried = decays.carried[..., None, None]
    if beta is None:
        return _Chunk(scores, reads, arriving, carried)
    # Each write takes away what it reads of the writes before it: the unit triangular system of the delta rule (docs/decisions/0006).
    strength = chunks(beta, chunk)
    taken = strength.unsqueeze(-1) * k
    identity = torch.eye(chunk, dtype=q.dtype, device=q.device).expand(scores.shape)
    overlaps = ((taken @ k.mT) * decays.within).tril(-1)
    inverse, of_state = torch.linalg.solve_triangular(
        overlaps, torch.cat([identity, taken * decays.entry.unsqueeze(-1)], dim=-1), upper=False, unitriangular=True
    ).split([chunk, k.shape[-1]], dim=-1)  # fmt: skip
    by_value = inverse * strength.unsqueeze(-2)
    whole = torch.eye(k.shape[-1], dtype=q.dtype, device=q.device)
    return _Chunk(scores @ by_value, reads - scores @ of_state, by_value.mT @ arriving, carried * whole - arriving.mT @ of_state)


def chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    level_scale: Tensor,
    log_decay: Tensor,
    beta: Tensor | None,
    state: Tensor,
    position: Tensor,
    before: Tensor,
    after: Tensor,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """See the op; ``position`` and ``after`` (B, L) are counts before and behind each position in its document."""
    length, levels = v.shape[1], state.shape[2]
    chunk = min(CHUNK, length)
    maps = _maps(q, k, log_decay, beta, reset, chunk)
    v, weights = chunks(v, chunk), chunks(level_scale, chunk)  # (B, n, H, C, M)
    places, counts, exists = (F.pad(t, (0, -length % chunk)).unflatten(1, (-1, chunk)) for t in (position, after, after - position))
    level = torch.arange(levels, device=v.device)
    behind = torch.cat([counts[:, :-1, -1], after[:, -1:]], 1)  # (B, n): positions that the document has had behind each chunk
    starts = (torch.cat([before.unsqueeze(1), behind[:, :-1]], 1) - 1).clamp(min=0)  # the latest position before each chunk
    # Behind a chunk levels are as the next position finds them, which is on fewer; behind the last position as that one leaves them.
    more = exists.sum(-1).cumsum(1) < exists.sum((1, 2)).unsqueeze(1)
    stops = torch.where(more, behind, (behind - 1).clamp(min=0))

    between = bit_length(places.unsqueeze(-1) ^ places.unsqueeze(-2), levels)  # (B, n, C, C)
    y = (maps.scores * weights.gather(-1, between.unsqueeze(2).expand(maps.scores.shape))) @ v
    seen = torch.maximum(level, bit_length(places ^ starts.unsqueeze(-1), levels).unsqueeze(-1))  # (B, n, C, M)
    read_weights = weights.gather(-1, seen.unsqueeze(2).expand(weights.shape))
    lands = bit_length(places ^ stops.unsqueeze(-1), levels)  # (B, n, C)
    least = bit_length(starts ^ stops, levels)  # (B, n): no level of before is lower behind
    moves = torch.maximum(level, least.unsqueeze(-1)).unsqueeze(-1) == level  # (B, n, M from, M to)

    s = {i: state[:, :, i] for i in _filled(state)}
    found = zip(_found(least, levels), _found(lands.flatten(2), levels), strict=True)
    outputs = []
    # Taken apart at once: the derivative of one chunk's slice would be a tensor of all chunks.
    parts = (t.unbind(1) for t in (y, maps.reads, read_weights, maps.carries, moves, v, lands, maps.writes))
    for (to, put), (output, reads, weight, carry, move, value, land, write) in zip(found, zip(*parts, strict=True), strict=True):
        after_it: dict[int, Tensor] = {}
        for m, one in s.items():
            output = output + (reads @ one) * weight[..., m, None]
            kept = carry * one if beta is None else carry @ one
            for j in sorted({max(m, lowest) for lowest in to}):
                _add(after_it, j, kept if len(to) == 1 else kept * move[:, m, j, None, None, None].to(kept.dtype))
        for j in put:
            _add(after_it, j, write.mT @ (value if put == [j] else value * (land == j)[:, None, :, None].to(v.dtype)))
        outputs.append(output)
        s = after_it
    last = [s[i] if i in s else torch.zeros_like(state[:, :, i]) for i in range(levels)]
    return torch.stack(outputs, 1).transpose(2, 3).flatten(1, 2)[:, :length], torch.stack(last, 2)


def _add(levels: dict[int, Tensor], level: int, what: Tensor) -> None:
    levels[level] = levels[level] + what if level in levels else what


def _watched(tensor: Tensor) -> bool:
    """Whether values may not decide what is done: there are none, or a derivative would miss them."""
    return tensor.is_meta or torch._C._functorch.peek_interpreter_stack() is not None


def _filled(state: Tensor) -> list[int]:
    """Levels that are not all zeros, where zeros need no derivative."""
    if _watched(state) or state.requires_grad or forward_ad._current_level >= 0:
        return list(range(state.shape[2]))
    return [i for i, some in enumerate((state != 0).transpose(1, 2).flatten(2).any(-1).any(0).tolist()) if some]


def _found(found: Tensor, levels: int) -> list[list[int]]:
    """The levels that occur in each chunk, (B, n) or (B, n, C)."""
    rows = found.transpose(0, 1).flatten(1)
    if _watched(found):
        return [list(range(levels)) for _ in range(len(rows))]
    return [sorted(set(row)) for row in rows.tolist()]


_opaque = opaque(
    "log_linear",
    chunked,
    "Tensor q, Tensor k, Tensor v, Tensor level_scale, Tensor log_decay, Tensor? beta, Tensor state, Tensor position, Tensor before, "
    "Tensor after, Tensor? reset",
    lambda q, k, v, level_scale, log_decay, beta, state, *_: (v, state),
    results=2,
)
