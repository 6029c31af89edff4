"""The neural transducer: an encoder of frames, a predictor of labels, and a joint network between them.

Paper: Graves, "Sequence Transduction with Recurrent Neural Networks", 2012, https://arxiv.org/abs/1211.3711.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from statescan.layers.linear import Linear
from statescan.ops.checks import check_positive, check_shape
from statescan.ops.rnnt import rnnt
from statescan.protocols import State
from statescan.registry import register
from statescan.state import state as declare_state
from statescan.timeline import Timeline


@declare_state
class TransducerState(NamedTuple):
    """What transcription of a stream remembers."""

    encoder: State
    cell: tuple[Tensor, Tensor]
    """The predictor's, batch first: (B, layers, D') each."""
    told: Tensor
    """(B, D'): what the predictor last said."""


@register
class Transducer(nn.Module):
    """Label 0 is the blank; labels 1 .. V - 1 are emitted. With e the encoder's output at frame t and p the predictor's after u labels::

        logits(t, u) = out(tanh(from_encoder(e_t) + from_predictor(p_u)))

    Args:
        encoder: factory of a causal backbone of features (B, L, d_input) to (B, L, d_encoder).
        d_encoder: width of its output.
        vocab_size: labels and the blank, V.
        d_predictor: width D' of the predictor, an LSTM.
        n_predictor: its layers.
        d_joint: width of the joint network.
    """

    def __init__(
        self,
        encoder: Callable[[], nn.Module],
        d_encoder: int,
        vocab_size: int,
        d_predictor: int = 512,
        n_predictor: int = 1,
        d_joint: int = 512,
    ) -> None:
        super().__init__()
        check_positive(d_encoder=d_encoder, d_predictor=d_predictor, n_predictor=n_predictor, d_joint=d_joint)
        if vocab_size < 2:
            raise ValueError(f"vocab_size counts the blank and at least one label; got {vocab_size}")
        self.labels = vocab_size
        self.encoder = encoder()
        self.embedding = nn.Embedding(vocab_size, d_predictor)
        self.predictor = nn.LSTM(d_predictor, d_predictor, n_predictor, batch_first=True)
        self.from_encoder = Linear(d_encoder, d_joint)
        self.from_predictor = Linear(d_predictor, d_joint, bias=False)
        self.out = Linear(d_joint, vocab_size)

    def forward(self, x: Tensor, targets: Tensor, timeline: Timeline | None = None, *, subnet: Any = None) -> Tensor:
        """Features (B, T, d_input) and labels (B, U) -> logits (B, T, U + 1, V). ``subnet`` goes to an elastic encoder."""
        check_shape("targets", targets, (x.shape[0], "U"))
        encoded = self.encoder(x, timeline) if subnet is None else self.encoder(x, timeline, subnet=subnet)
        told, _ = self.predictor(self.embedding(torch.cat([torch.zeros_like(targets[:, :1]), targets], 1)))
        return self.joint(encoded.unsqueeze(2), told.unsqueeze(1))

    def joint(self, encoded: Tensor, told: Tensor) -> Tensor:
        """Broadcasts over what stands before the last axes."""
        out: Tensor = self.out(torch.tanh(self.from_encoder(encoded) + self.from_predictor(told)))
        return out

    def loss(self, logits: Tensor, targets: Tensor, frames: Tensor, labels: Tensor) -> Tensor:
        """Mean over rows of minus the log-probability of the first ``labels`` targets given the first ``frames`` frames."""
        logs = logits.log_softmax(-1, dtype=torch.float64 if logits.dtype == torch.float64 else torch.float32)
        chosen = targets.unsqueeze(1).expand(-1, logits.shape[1], -1).unsqueeze(-1)
        return rnnt(logs[..., 0], logs[:, :, :-1].gather(-1, chosen).squeeze(-1), frames, labels).mean()

    def init_state(self, batch_size: int, **where: Any) -> TransducerState:
        """Nothing heard, and nothing said."""
        like = self.embedding.weight
        shape = (batch_size, self.predictor.num_layers, self.predictor.hidden_size)
        cell = (like.new_zeros(shape), like.new_zeros(shape))
        told, cell = self._say(torch.zeros(batch_size, dtype=torch.long, device=like.device), cell)
        return TransducerState(self.encoder.init_state(batch_size, **where), cell, told)  # type: ignore[operator]

    def _say(self, label: Tensor, cell: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        told, (h, c) = self.predictor(self.embedding(label).unsqueeze(1), (cell[0].transpose(0, 1), cell[1].transpose(0, 1)))
        return told.squeeze(1), (h.transpose(0, 1), c.transpose(0, 1))

    @torch.no_grad()
    def transcribe(self, x: Tensor, state: TransducerState | None = None, *, most: int = 5) -> tuple[list[list[int]], TransducerState]:
        """The best label at every frame, up to ``most`` at one; a chunk of a stream, whose state goes on. Features (B, T, d_input)."""
        state = self.init_state(x.shape[0], device=x.device) if state is None else state
        encoded, encoder = self.encoder.scan(x, state.encoder)  # type: ignore[operator]
        cell, told = state.cell, state.told
        found: list[list[int]] = [[] for _ in range(x.shape[0])]
        for frame in encoded.unbind(1):
            for _ in range(most):
                label = self.joint(frame, told).argmax(-1)
                said = label != 0
                if not bool(said.any()):
                    break
                new_told, new_cell = self._say(label, cell)
                told = torch.where(said[:, None], new_told, told)
                cell = tuple(torch.where(said[:, None, None], a, b) for a, b in zip(new_cell, cell, strict=True))  # type: ignore[assignment]
                for row, (spoken, which) in enumerate(zip(said.tolist(), label.tolist(), strict=True)):
                    if spoken:
                        found[row].append(which)
        return found, TransducerState(encoder, cell, told)
