"""Self-pretraining: denoise the training rows of the task itself, then go on from these weights.

Paper: Amos et al., "Never Train from Scratch: Fair Comparison of Long-Sequence Models Requires Data-Driven Priors", 2024,
https://arxiv.org/abs/2310.02980.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from statescan.backbones import FlatBackbone
from statescan.layers.norm import NormKind
from statescan.parameters import parameter_groups
from statescan.procedures.optim import make_optimizer, set_rate
from statescan.registry import register

UNASKED = -100


class Noisy(NamedTuple):
    """What a denoiser is given, what it is asked for, and where."""

    inputs: Tensor
    """(B, L, C + 1), the mask as the last channel; (B, L, C) for the causal objective; ids (B, L)."""
    targets: Tensor
    """(B, L, C) or ids (B, L)"""
    asked: Tensor
    """bool (B, L)"""


@dataclass(frozen=True)
class Denoising:
    """The objective.

    ``masked``: a share ``p`` of the positions is hidden, single ones or runs of ``span``, and asked for. Features are zero there, and the
    mask is one more channel; a hidden id becomes ``mask_id``. ``causal``: every position asks for the next one; nothing is hidden.
    """

    kind: Literal["masked", "causal"] = "masked"
    p: float = 0.5
    span: int = 1
    mask_id: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("masked", "causal") or not 0 < self.p < 1 or self.span < 1:
            raise ValueError(f"kind is masked or causal, 0 < p < 1 and span >= 1; got {self.kind!r}, {self.p} and {self.span}")

    def __call__(self, rows: Tensor, generator: torch.Generator | None = None) -> Noisy:
        """Rows (B, L, C) of features, or (B, L) of ids."""
        if self.kind == "causal":
            asked = torch.ones(rows.shape[:2], dtype=torch.bool, device=rows.device)
            asked[:, -1] = False
            return Noisy(rows, rows.roll(-1, 1), asked)
        hidden = self.hidden(rows.shape[0], rows.shape[1], generator).to(rows.device)
        if rows.ndim == 2:
            if self.mask_id is None:
                raise ValueError("masked denoising of ids needs mask_id, an id that stands for a hidden one")
            return Noisy(rows.masked_fill(hidden, self.mask_id), rows, hidden)
        shown = torch.where(hidden.unsqueeze(-1), 0, rows)
        return Noisy(torch.cat([shown, hidden.unsqueeze(-1).to(rows.dtype)], -1), rows, hidden)

    def hidden(self, batch: int, length: int, generator: torch.Generator | None = None) -> Tensor:
        """bool (B, L); a run begins so often that a share p is hidden."""
        begins = 1 - (1 - self.p) ** (1 / self.span)
        starts = torch.rand(batch, length + self.span - 1, generator=generator) < begins
        return starts.unfold(1, self.span, 1).any(-1)


@register
class Denoiser(nn.Module):
    """An encoder, a flat backbone and a decoder at every position: what is pretrained.

    Args:
        d_model: width D.
        d_input: features a position, C, or the number of ids.
        layers: pattern over the names of ``parts``; the causal objective needs causal parts.
        parts: name (one letter) -> mixer or layer.
        levels: classes a position: cross-entropy over them; 0: features, and their mean absolute error.
        masked: features come with one more channel, the mask.
        ids: the input is ids.
        norm: kind of every norm.
        norm_f: normalise the last stream.

    Names are those of :class:`~statescan.heads.sequence.SequenceClassifier`, so that :func:`transfer` finds them.
    """

    def __init__(
        self,
        d_model: int,
        d_input: int,
        layers: str,
        parts: Mapping[str, Callable[[int], nn.Module]],
        levels: int = 0,
        masked: bool = True,
        ids: bool = False,
        norm: NormKind = "layer",
        norm_f: bool = False,
    ) -> None:
        super().__init__()
        self.levels = levels
        if ids and not levels:
            raise ValueError("ids are decoded into classes: levels must be positive")
        self.encoder = nn.Embedding(d_input, d_model) if ids else nn.Linear(d_input + masked, d_model)
        self.backbone = FlatBackbone(d_model, layers, parts, norm=norm, norm_f=norm_f)
        self.decoder = nn.Linear(d_model, levels or d_input)

    def forward(self, x: Tensor) -> Tensor:
        """The inputs of a :class:`Noisy` -> (B, L, C or levels)."""
        h = self.backbone(self.encoder(x))
        return self.decoder(h.to(self.decoder.weight.dtype))

    def loss(self, output: Tensor, noisy: Noisy) -> Tensor:
        """Over the positions that are asked for: mean absolute error, or cross-entropy in nats."""
        if not self.levels:
            return (output - noisy.targets)[noisy.asked].abs().mean()
        targets = noisy.targets if noisy.targets.ndim == 2 else noisy.targets.squeeze(-1)
        return F.cross_entropy(output.mT, torch.where(noisy.asked, targets.long(), UNASKED), ignore_index=UNASKED)

    def parameter_groups(self, weight_decay: float = 0.01, lr: float | None = None) -> list[dict[str, Any]]:
        """Optimiser groups: dynamics, norms and biases without weight decay; some parameters with a rate of their own."""
        return parameter_groups(self, weight_decay=weight_decay, lr=lr)


class Transfer(NamedTuple):
    """Names of parameters and buffers: taken over; taken over without what read the mask; left behind; and fresh in the new model."""

    loaded: tuple[str, ...]
    cut: tuple[str, ...]
    dropped: tuple[str, ...]
    fresh: tuple[str, ...]


@torch.no_grad()
def transfer(pretrained: nn.Module, model: nn.Module, drop: tuple[str, ...] = ("decoder",)) -> Transfer:
    """Take over all weights but those under ``drop``; an encoder that also read the mask loses that column, or that id's row, the last.

    Nothing is skipped in silence: a name on one side only, or another shape, is an error.
    """
    given, wanted = pretrained.state_dict(), model.state_dict()

    def below(name: str) -> bool:
        return any(name == prefix or name.startswith(prefix + ".") for prefix in drop)

    loaded, cut = [], []
    for name, target in wanted.items():
        if below(name):
            continue
        if name not in given:
            raise ValueError(f"{name} has no pretrained weight: build both models alike, or list what is new in drop")
        source = given[name]
        axis = int(name == "encoder.weight" and isinstance(model.get_submodule("encoder"), nn.Linear))  # an embedding has a row an id
        if name == "encoder.weight" and source.shape[axis] == target.shape[axis] + 1:
            source = source.narrow(axis, 0, target.shape[axis])
            cut.append(name)
        elif source.shape != target.shape:
            raise ValueError(f"{name} has shape {tuple(source.shape)} in the pretrained model and {tuple(target.shape)} here")
        else:
            loaded.append(name)
        target.copy_(source)
    unknown = sorted(name for name in given.keys() - wanted.keys() if not below(name))
    if unknown:
        raise ValueError(f"the pretrained model has {unknown[0]}, which the new one has not: list it in drop")
    return Transfer(tuple(loaded), tuple(cut), tuple(filter(below, given)), tuple(filter(below, wanted)))


def pretrain(
    model: Denoiser,
    rows: Tensor,
    held_out: Tensor,
    objective: Denoising,
    steps: int = 200,
    batch_size: int = 32,
    lr: float = 1e-3,
    weight_decay: float = 0.01,
    eval_every: int = 50,
    seed: int = 0,
) -> list[tuple[int, float]]:
    """Denoise ``rows`` at a constant rate after a warm-up of a tenth, gradients clipped at 1; keep the weights best on ``held_out``.

    Returns (step, loss on the held-out rows, whose noise is always the same).
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = make_optimizer(model, lr, (0.9, 0.999), weight_decay)
    test = objective(held_out, torch.Generator().manual_seed(seed + 1))
    curve, best, kept = [], float("inf"), copy.deepcopy(model.state_dict())
    for step in range(1, steps + 1):
        model.train()
        set_rate(optimizer, min(1.0, 10 * step / steps))
        noisy = objective(rows[torch.randint(len(rows), (batch_size,), generator=generator)], generator)
        loss = model.loss(model(noisy.inputs), noisy)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % eval_every == 0 or step == steps:
            model.eval()
            with torch.no_grad():
                value = float(model.loss(model(test.inputs), test))
            curve.append((step, value))
            if value < best:
                best, kept = value, copy.deepcopy(model.state_dict())
    model.load_state_dict(kept)
    return curve
