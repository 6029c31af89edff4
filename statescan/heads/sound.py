"""A model of sound, sample by sample: levels in, the distribution of the next level out, with the state going in and out.

Papers: Goel, Gu, Donahue and Re, "It's Raw! Audio Generation with State-Space Models", 2022, https://arxiv.org/abs/2202.09729; van den
Oord et al., "WaveNet: A Generative Model for Raw Audio", 2016, https://arxiv.org/abs/1609.03499.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan.backbones import PoolUNet
from statescan.heads.logistic_mixture import LogisticMixture
from statescan.heads.waveform import linear_decode, linear_encode, mu_law_decode, mu_law_encode
from statescan.layers.linear import Linear
from statescan.layers.norm import NormKind, make_norm
from statescan.mixers.s4 import S4
from statescan.ops.checks import check_positive
from statescan.parameters import parameter_groups
from statescan.protocols import Bus, State
from statescan.registry import register
from statescan.spec import Spec
from statescan.timeline import Timeline, hide

Coding = Literal["mu-law", "linear"]


@register
class SoundModel(nn.Module):
    """Levels, a network, a norm, and a distribution of the next level. The contract is a causal mixer's, on levels.

    Args:
        d_model: width D.
        network: factory of a causal mixer, or of a backbone with its contract, given the width.
        levels: that a sample may have: 256 are 8 bits, 65536 are 16.
        coding: how a sample becomes a level: ``mu-law`` (finer near silence) or ``linear``.
        components: 0: one logit a level, and an embedding a level. K: a mixture of K logistic distributions over the levels
            (:class:`LogisticMixture`), and the level enters as a number.
        rate: samples a second of what it models.
        norm: kind of the last norm.
        norm_eps: of that norm.

    Shapes: int64 levels (B, L) -> logits (B, L, levels), or the mixture's parameters (B, L, 3 K).
    """

    def __init__(
        self,
        d_model: int = 64,
        network: Callable[[int], nn.Module] = Spec(PoolUNet, mixer=Spec(S4, n_ssm=1)),
        levels: int = 256,
        coding: Coding = "mu-law",
        components: int = 0,
        rate: int = 16000,
        norm: NormKind = "layer",
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        check_positive(d_model=d_model, rate=rate)
        if not 2 <= levels <= 65536 or components < 0:
            raise ValueError(f"levels must be 2 to 65536 (16 bits) and components 0 or more; got {levels} and {components}")
        if coding not in ("mu-law", "linear"):
            raise ValueError(f"coding must be 'mu-law' or 'linear'; got {coding!r}")
        if not components and levels > 4096:
            raise ValueError(f"{levels} levels need a mixture: set components, for example to 10, or levels to 256")
        self.d_model, self.levels, self.rate, self.components = d_model, levels, rate, components
        self.coding: Coding = coding
        self.embedding = Linear(1, d_model) if components else nn.Embedding(levels, d_model)
        if isinstance(self.embedding, nn.Embedding):
            nn.init.normal_(self.embedding.weight, std=0.02)
        self.network = network(d_model)
        self.norm_f = make_norm(norm, d_model, norm_eps)
        self.head = Linear(d_model, 3 * components or levels)
        if components:
            with torch.no_grad():  # spread over the middle, a tenth of the range wide
                self.head.bias[:components] = 0
                self.head.bias[components : 2 * components] = torch.linspace(-0.5, 0.5, components) if components > 1 else 0
                self.head.bias[2 * components :] = -2.5

    @property
    def vocab_size(self) -> int:
        """The levels, as ids."""
        return self.levels

    @property
    def silence(self) -> int:
        """The level of 0, which stands before the first sample."""
        return int(self.encode(torch.zeros(())))

    # -- samples and levels -------------------------------------------------------------------------------------------------

    def encode(self, wave: Tensor) -> Tensor:
        """Samples in [-1, 1] to levels."""
        return mu_law_encode(wave, self.levels) if self.coding == "mu-law" else linear_encode(wave, self.levels)

    def decode(self, levels: Tensor) -> Tensor:
        """Levels to samples in [-1, 1]."""
        return mu_law_decode(levels, self.levels) if self.coding == "mu-law" else linear_decode(levels, self.levels)

    # -- the contract -------------------------------------------------------------------------------------------------------

    def forward(
        self,
        ids: Tensor,
        timeline: Timeline | None = None,
        *,
        state: State | None = None,
        return_state: bool = False,
        bus: Bus | None = None,
    ) -> Any:
        """Levels (B, L) -> what the next level depends on (B, L, levels or 3 K); zeros at positions that do not exist."""
        if ids.ndim != 2 or ids.dtype not in (torch.int64, torch.int32) or not ids.shape[1]:
            raise ValueError(f"levels must be integers of shape (batch, length >= 1); got {ids.dtype} {tuple(ids.shape)}")
        x = hide(self.embed(hide(ids, timeline)), timeline)
        h = self.network(x, timeline, state=state, return_state=return_state, bus=bus)
        h, after = h if return_state else (h, None)
        y = hide(self.head(self.norm_f(h)), timeline)
        return (y, after) if return_state else y

    def embed(self, ids: Tensor) -> Tensor:
        """Levels (...) -> (..., D)."""
        if not self.components:
            return self.embedding(ids)  # type: ignore[no-any-return]
        return self.embedding(linear_decode(ids, self.levels).to(self.head.weight.dtype).unsqueeze(-1))  # type: ignore[no-any-return]

    def scan(
        self, ids: Tensor, state: State | None = None, timeline: Timeline | None = None, bus: Bus | None = None
    ) -> tuple[Tensor, State]:
        """``(outputs, state)``: a chunk."""
        return self(ids, timeline, state=state, return_state=True, bus=bus)  # type: ignore[no-any-return]

    def step(self, ids: Tensor, state: State, timeline: Timeline | None = None, bus: Bus | None = None) -> tuple[Tensor, State]:
        """One sample a row: levels (B,)."""
        line = None if timeline is None else timeline.as_sequence()
        y, state = self(ids.unsqueeze(1), line, state=state, return_state=True, bus=bus)
        return y.squeeze(1), state

    def init_state(self, batch_size: int, *, capacity: int | None = None, device: torch.device | str | None = None) -> State:
        """The network's."""
        return self.network.init_state(batch_size, capacity=capacity, device=device)  # type: ignore[operator]

    # -- what the output says -----------------------------------------------------------------------------------------------

    def nll(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """-log P of each target in nats, (...) like the targets; 0 where a target is negative: nothing is asked there."""
        if not self.components:
            rows = F.cross_entropy(outputs.flatten(0, -2), targets.long().flatten(), ignore_index=-100, reduction="none")
            return rows.view(targets.shape)
        asked = targets >= 0
        log_prob = LogisticMixture.of(outputs, self.levels).log_prob(targets.clamp(min=0), self.levels)
        return torch.where(asked, -log_prob, 0.0)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean of :meth:`nll` over the targets that are not negative."""
        return self.nll(outputs, targets).sum() / (targets >= 0).sum().clamp(min=1)

    def parameter_groups(self, weight_decay: float = 0.1, lr: float | None = None) -> list[dict[str, Any]]:
        """Optimiser groups: dynamics, norms and biases without weight decay; some parameters with a rate of their own."""
        return parameter_groups(self, weight_decay=weight_decay, lr=lr)
