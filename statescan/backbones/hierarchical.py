"""Two levels: a low one reads each chunk of samples by itself, and a high one runs over what the low one knew at the end of each chunk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from statescan import state as states
from statescan.backbones.flat import FlatBackbone, FlatState
from statescan.layers.linear import Linear
from statescan.ops.checks import check_shape
from statescan.protocols import Bus
from statescan.registry import register
from statescan.state import state as declare_state
from statescan.timeline import Timeline, hide


@declare_state
class StreamState(NamedTuple):
    """Between two samples of a stream."""

    low: FlatState
    """Of the chunk that is not complete."""
    filled: Tensor
    """int64 (B,): samples in it."""
    high: FlatState


@register
class HierarchicalBackbone(nn.Module):
    """A position is a chunk of samples::

        low   embed, backbone over the samples of the chunk, its last position, summary
        high  backbone over the chunks

    Args:
        channels: values a sample.
        chunk: samples a chunk, k.
        low: factory of the backbone over samples.
        high: factory of the backbone over chunks; its width is D.

    The contract is a causal mixer's at the rate of the chunks, (B, T, k * channels) -> (B, T, D): :meth:`fold` makes such chunks of
    samples, and a timeline speaks of chunks. The low level starts anew with every chunk, so the state is the high level's. :meth:`push`
    takes a stream sample by sample.
    """

    def __init__(self, channels: int, chunk: int, low: Callable[[], FlatBackbone], high: Callable[[], FlatBackbone]) -> None:
        super().__init__()
        if channels < 1 or chunk < 1:
            raise ValueError(f"channels and chunk must be positive; got {channels} and {chunk}")
        self.channels, self.chunk = channels, chunk
        self.low, self.high = low(), high()
        self.d_model = self.high.d_model
        self.embed = Linear(channels, self.low.d_model)
        self.summary = Linear(self.low.d_model, self.d_model)

    @property
    def causal(self) -> bool:
        """Whether chunk after chunk can be taken in."""
        return self.high.causal

    def fold(self, samples: Tensor) -> Tensor:
        """Samples (B, k T, channels) -> chunks (B, T, k * channels)."""
        check_shape("samples", samples, ("B", "k T", self.channels))
        if samples.shape[1] % self.chunk:
            raise ValueError(f"the number of samples must be a multiple of {self.chunk}; got {samples.shape[1]}: push() takes the rest")
        return samples.unflatten(1, (-1, self.chunk)).flatten(2)

    def forward(
        self,
        x: Tensor,
        timeline: Timeline | None = None,
        *,
        state: FlatState | None = None,
        return_state: bool = False,
        bus: Bus | None = None,
    ) -> Any:
        """Chunks (B, T, k * channels) -> (B, T, D)."""
        check_shape("x", x, ("B", "T", self.chunk * self.channels))
        if timeline is not None:
            timeline = timeline.without_interval(type(self).__name__)
        samples = hide(x, timeline).unflatten(2, (self.chunk, self.channels)).flatten(0, 1)
        ends = self.low(self.embed(samples))[:, -1]
        summaries = self.summary(ends.to(x.dtype)).unflatten(0, (-1, x.shape[1]))
        return self.high(summaries, timeline, state=state, return_state=return_state, bus=bus)

    def scan(
        self, x: Tensor, state: FlatState | None = None, timeline: Timeline | None = None, bus: Bus | None = None
    ) -> tuple[Tensor, FlatState]:
        """``(y, state)``: some chunks."""
        return self(x, timeline, state=state, return_state=True, bus=bus)  # type: ignore[no-any-return]

    def step(self, x: Tensor, state: FlatState, timeline: Timeline | None = None, bus: Bus | None = None) -> tuple[Tensor, FlatState]:
        """One chunk: x (B, k * channels)."""
        y, state = self.scan(x.unsqueeze(1), state, None if timeline is None else timeline.as_sequence(), bus)
        return y.squeeze(1), state

    def init_state(self, batch_size: int, *, device: torch.device | str | None = None) -> FlatState:
        """The high level's."""
        return self.high.init_state(batch_size, device=device)

    def init_stream(self, batch_size: int, *, device: torch.device | str | None = None) -> StreamState:
        """Before the first sample."""
        device = self.embed.weight.device if device is None else device
        filled = torch.zeros(batch_size, dtype=torch.long, device=device)
        return StreamState(self.low.init_state(batch_size, device=device), filled, self.init_state(batch_size, device=device))

    def push(self, sample: Tensor, state: StreamState) -> tuple[Tensor, Tensor, StreamState]:
        """One sample (B, channels) -> y (B, D), bool (B,) which rows completed a chunk with it, and the state. Other rows of y are zero."""
        check_shape("sample", sample, ("B", self.channels))
        end, low = self.low.step(self.embed(sample), state.low)
        filled = state.filled + 1
        complete = filled == self.chunk
        y, high = self.high.step(self.summary(end.to(sample.dtype)), state.high)
        y = torch.where(complete.unsqueeze(-1), y, 0)
        low = states.where(complete, self.low.init_state(len(sample), device=sample.device), low)
        return y, complete, StreamState(low, filled.masked_fill(complete, 0), states.where(complete, high, state.high))
