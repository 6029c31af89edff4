"""Time as an argument: where sequences begin, which positions exist, and how much time passes before each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Timeline(NamedTuple):
    """What one needs to know about the positions of a batch of sequences, beside their content.

    - ``reset`` bool (B, L): before this position the state returns to ``init_state`` (packed documents, episodes).
    - ``mask`` bool (B, L): False means that the position does not exist. Values and state equal those of the sequence with it
      deleted: convolution taps, windows and rotary positions count existing positions since the last reset, and no time passes.
      Its output is zero. A reset on a position that does not exist still holds for the next one that does.
    - ``interval`` float or (B, L): time that passes before each position, in units of the model's own step. A float keeps
      convolution mode; a layer with no notion of time raises.

    A missing *observation* is data (a NaN with an indicator, or the row dropped and its interval added to the next), not a mask.
    """

    reset: Tensor | None = None
    mask: Tensor | None = None
    interval: Tensor | float | None = None

    # -- ways to make one ---------------------------------------------------------------------------------------------------

    @staticmethod
    def packed(lengths: Sequence[int] | Sequence[Sequence[int]], device: torch.device | str | None = None) -> Timeline:
        """Documents of these lengths, one behind the other: ``packed([40, 60])`` is one row of 100 positions.

        A list of lists is a batch, one list a row; rows shorter than the longest end in positions that do not exist.
        """
        if hasattr(lengths, "tolist"):
            lengths = lengths.tolist()  # type: ignore[attr-defined]  # a tensor or an array
        nested: Any = lengths if len(lengths) and hasattr(lengths[0], "__len__") else [lengths]
        rows: list[list[int]] = [[int(n) for n in row] for row in nested]
        if not all(row and all(isinstance(n, int) and n > 0 for n in row) for row in rows):
            raise ValueError(f"packed(lengths) takes positive integers, at least one a row; got {lengths!r}")
        length = max(sum(row) for row in rows)
        reset = torch.zeros(len(rows), length, dtype=torch.bool)
        mask = torch.ones(len(rows), length, dtype=torch.bool)
        for i, row in enumerate(rows):
            starts = torch.tensor([0, *row[:-1]]).cumsum(0)
            reset[i, starts] = True
            mask[i, sum(row) :] = False
        return Timeline(reset.to(device), None if bool(mask.all()) else mask.to(device))

    @staticmethod
    def from_cu_seqlens(cu_seqlens: Tensor) -> Timeline:
        """One row whose documents start at ``cu_seqlens[:-1]`` and end at ``cu_seqlens[1:]`` (the variable-length convention)."""
        lengths = cu_seqlens.diff().tolist()
        if int(cu_seqlens[0]) != 0 or not lengths or min(lengths) < 0:
            raise ValueError(f"cu_seqlens must start at 0 and not decrease; got {cu_seqlens.tolist()}")
        return Timeline.packed([n for n in lengths if n > 0], cu_seqlens.device)

    @staticmethod
    def from_seq_idx(seq_idx: Tensor) -> Timeline:
        """Document numbers (B, L), as in ``seq_idx``: a new document begins where the number changes; -1 is padding."""
        change = torch.ones_like(seq_idx, dtype=torch.bool)
        change[:, 1:] = seq_idx[:, 1:] != seq_idx[:, :-1]
        padding = seq_idx < 0
        return Timeline(change, ~padding if bool(padding.any()) else None)

    @staticmethod
    def padded(mask: Tensor) -> Timeline:
        """From a padding mask (B, L): True (or 1) where a position exists, False (or 0) where it does not."""
        if mask.ndim != 2:
            raise ValueError(f"padded(mask) expects a mask of shape (batch, length); got {tuple(mask.shape)}")
        return Timeline(mask=mask.bool())

    @staticmethod
    def irregular(timestamps: Tensor, first: float = 1.0) -> Timeline:
        """From non-decreasing times (B, L) in units of the model's step; ``first`` is the interval before the first of each row."""
        if timestamps.ndim != 2:
            raise ValueError(f"irregular(timestamps) expects shape (batch, length); got {tuple(timestamps.shape)}")
        interval = timestamps.diff(dim=1, prepend=timestamps[:, :1] - first)
        if bool((interval < 0).any()):
            raise ValueError("irregular(timestamps) expects times that do not decrease along a row")
        return Timeline(interval=interval)

    # -- ways to read one ---------------------------------------------------------------------------------------------------

    @property
    def plain(self) -> bool:
        """Nothing special: every position exists, nothing resets, unit steps."""
        return self.reset is None and self.mask is None and self.interval is None

    def expand(self, batch: int, length: int) -> Timeline:
        """Check the fields against (batch, length), and broadcast a field of one row over the batch."""

        def fit(name: str, field: Tensor | float | None) -> Tensor | float | None:
            if not isinstance(field, Tensor):
                if name == "interval" and field is not None and not field >= 0:
                    raise ValueError(f"timeline.interval must be a number that is not negative; got {field}")
                return field
            # Not `in (1, batch)`: a compiler takes two sizes of one value for different ones there.
            if field.ndim != 2 or (field.shape[0] != batch and field.shape[0] != 1) or field.shape[1] != length:
                raise ValueError(
                    f"timeline.{name} has shape {tuple(field.shape)}; expected ({batch}, {length}), the batch and length of the input"
                )
            if name != "interval" and field.dtype != torch.bool:
                raise ValueError(f"timeline.{name} must be bool, got {field.dtype}: write {name}.bool()")
            return field.expand(batch, length)

        return Timeline(*(fit(name, field) for name, field in zip(self._fields, self, strict=True)))  # type: ignore[arg-type]

    def slice(self, start: int, stop: int) -> Timeline:
        """The positions start..stop-1 of every row."""
        return self._map(lambda field: field[:, start:stop])

    def at(self, t: int) -> Timeline:
        """Position t alone, fields of shape (B,): what ``step`` takes."""
        return self._map(lambda field: field[:, t])

    def as_sequence(self) -> Timeline:
        """From fields (B,) to sequences of length one: the inverse of :meth:`at`."""
        return self._map(lambda field: field.unsqueeze(1))

    def repeat_interleave(self, n: int) -> Timeline:
        """Each row n times (a batch whose rows were split into n)."""
        return self._map(lambda field: field.repeat_interleave(n, dim=0))

    def segments(self) -> Tensor:
        """The number of resets up to and including each position, int64 (B, L): 0 continues the incoming state."""
        if self.reset is None:
            raise ValueError("a timeline without resets has one segment: check timeline.reset first")
        return self.reset.long().cumsum(1)

    def without_interval(self, who: str) -> Timeline:
        """Itself, or a ValueError if time passes unevenly and ``who`` has no notion of time."""
        if self.interval is not None and not (isinstance(self.interval, (int, float)) and self.interval == 1.0):
            raise ValueError(f"{who} has no notion of elapsed time: timeline.interval must be None; use S4D or a selective mixer")
        return self._replace(interval=None)

    def _map(self, fn: Callable[[Tensor], Tensor]) -> Timeline:
        return Timeline(*(fn(field) if isinstance(field, Tensor) else field for field in self))  # type: ignore[arg-type]

    # -- two ways to turn a causal world around -----------------------------------------------------------------------------

    def reversed(self) -> Timeline:
        """The timeline of the flipped sequence.

        Not only a flip: a document that began at t ends there when read backwards, so a reset moves to the position before the
        old one; and the time between two neighbours now precedes the earlier of them. The interval before a document's first
        position (which leads from nowhere) is kept for its first position in the new order.
        """
        flipped = self._map(lambda field: field.flip(1))
        if self.reset is not None:
            # Reading backwards, a document starts at the position just before the next document's start.
            starts = torch.roll(self.reset, -1, dims=1)
            starts[:, -1] = False
            flipped = flipped._replace(reset=starts.flip(1))
        if isinstance(self.interval, Tensor):
            flipped = flipped._replace(interval=self._following_interval().flip(1))
        return flipped

    def _following_interval(self) -> Tensor:
        """For each position, the interval before the next existing position of its document; for the last, that of the first."""
        interval = self.interval
        assert isinstance(interval, Tensor)
        batch, length = interval.shape
        exists = torch.ones(batch, length, dtype=torch.bool, device=interval.device) if self.mask is None else self.mask
        segment = torch.zeros(batch, length, dtype=torch.long, device=interval.device) if self.reset is None else self.segments()
        here = torch.arange(length, device=interval.device).expand(batch, length)
        beyond = torch.full((batch, 1), length, device=interval.device)
        # index of the next existing position strictly after each one (length if there is none)
        existing = torch.where(exists, here, length)
        following = torch.cat([existing[:, 1:], beyond], 1).flip(1).cummin(1).values.flip(1)
        inside = following.clamp(max=length - 1)
        same = (following < length) & (segment.gather(1, inside) == segment)
        # index of the first existing position of each document
        first = torch.full((batch, length + 1), length, device=interval.device).scatter_reduce(1, segment, existing, "amin")
        first = first.gather(1, segment).clamp(max=length - 1)
        return interval.gather(1, torch.where(same, inside, first))

    def apart(self, fn: Callable[[Tensor, Timeline | None], Tensor], x: Tensor) -> Tensor:
        """Run ``fn`` on every document by itself: gather documents into rows, run, scatter back.

        ``fn(rows, timeline)`` sees rows of one length with no padding and no resets (``timeline`` carries the interval, if any), once for
        each length that occurs, so it is right for any layer whatever it knows of masks. Positions that do not exist get zeros.
        The number of calls depends on the data: this route is not for ``torch.compile``.
        """
        line = self.expand(x.shape[0], x.shape[1])
        batch, length = x.shape[:2]
        row = torch.arange(batch, device=x.device).unsqueeze(1).expand(batch, length)
        segment = torch.zeros_like(row) if line.reset is None else line.segments()
        exists = torch.ones_like(row, dtype=torch.bool) if line.mask is None else line.mask
        position = torch.arange(batch * length, device=x.device).view(batch, length)[exists]
        document = (row * (length + 1) + segment)[exists]  # ascending along positions
        _, counts = torch.unique_consecutive(document, return_counts=True)
        starts = counts.cumsum(0) - counts
        flat = x.reshape(batch * length, *x.shape[2:])
        pieces: list[Tensor] = []
        places: list[Tensor] = []
        for size in counts.unique().tolist():
            index = position[starts[counts == size].unsqueeze(1) + torch.arange(size, device=x.device)]
            interval = line.interval
            if isinstance(interval, Tensor):
                interval = interval.reshape(-1)[index]
            out = fn(flat[index], None if interval is None else Timeline(interval=interval))
            pieces.append(out.reshape(index.numel(), *out.shape[2:]))
            places.append(index.reshape(-1))
        if not pieces:
            return torch.zeros_like(x)
        joined, place = torch.cat(pieces), torch.cat(places)
        result = joined.new_zeros(batch * length, *joined.shape[1:])
        return result.index_copy(0, place, joined).view(batch, length, *joined.shape[1:])


def hide(x: Tensor, timeline: Timeline | None) -> Tensor:
    """Zeros at positions that do not exist (selected, not multiplied: what stands there may be NaN); x is (B, L, ...)."""
    if timeline is None or timeline.mask is None:
        return x
    mask = timeline.expand(x.shape[0], x.shape[1]).mask
    assert mask is not None
    return torch.where(mask.view(*mask.shape, *[1] * (x.ndim - 2)), x, torch.zeros((), dtype=x.dtype, device=x.device))
