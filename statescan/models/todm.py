"""TODM: one supernet of multi-head state-space layers under a transducer's loss, from which networks of many sizes are cut."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from statescan.backbones import FlatState
from statescan.blocks import Residual
from statescan.heads.divergence import adaptive_divergence
from statescan.heads.transducer import Transducer
from statescan.layers.elastic import ElasticMLP
from statescan.layers.linear import Linear
from statescan.layers.norm import LayerNorm
from statescan.mixers.mh_ssm import MultiHeadSSM
from statescan.ops.checks import check_positive
from statescan.protocols import Bus, CausalMixer, State
from statescan.registry import Family, register, register_model
from statescan.spec import Spec
from statescan.timeline import Timeline, hide

FAMILY = Family(
    name="todm",
    title="TODM: Train Once Deploy Many Efficient Supernet-Based RNN-T Compression For On-device ASR Models",
    url="https://arxiv.org/abs/2309.01947",
    bibtex="""@inproceedings{shangguan2024todm,
  title={{TODM}: Train Once Deploy Many Efficient Supernet-Based {RNN-T} Compression For On-device {ASR} Models},
  author={Shangguan, Yuan and Yang, Haichuan and Li, Danni and Wu, Chunyang and Fathullah, Yassir and Wang, Dilin and Dalmia, Ayushi and
    Krishnamoorthi, Raghuraman and Kalinli, Ozlem and Jia, Junteng and others},
  booktitle={IEEE International Conference on Acoustics, Speech and Signal Processing},
  year={2024}
}""",
    exact="Supernet of elastic depth and width, sandwich training in place, adaptive dropout, alpha-divergence with clipped ratios.",
    deviates="Sizes are not published; the form of adaptive dropout is a reading of the abstract; ScaledAdam is left to the optimiser.",
)


class Subnet(NamedTuple):
    """The first ``depth`` layers, and the first ``width`` inner channels of each one's MLP."""

    depth: int
    width: int


@register
class ElasticEncoder(nn.Module):
    """Features to encodings through layers [x + mixer(norm(x)), x + mlp(norm(x))], of which a call may use a part.

    Args:
        d_input: features a frame.
        d_model: width D.
        mixer: factory of the layers' causal mixer, given the width.
        n_layers: layers of the whole network.
        d_ff: inner channels of the whole network's MLPs.
        dropout: of the MLPs; a slice of them drops less.
        norm_eps: of every norm.

    Shapes: (B, L, d_input) -> (B, L, D). The contract is a causal mixer's; the state is a FlatState with one state a layer in use.
    """

    def __init__(
        self,
        d_input: int,
        d_model: int,
        mixer: Callable[[int], CausalMixer] = Spec(MultiHeadSSM),
        n_layers: int = 18,
        d_ff: int = 2048,
        dropout: float = 0.1,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        check_positive(d_input=d_input, d_model=d_model, n_layers=n_layers)
        self.d_input, self.full = d_input, Subnet(n_layers, d_ff)
        self.in_proj = Linear(d_input, d_model)
        self.mixers = nn.ModuleList(Residual(d_model, mixer(d_model), norm_eps, "layer") for _ in range(n_layers))
        self.norms = nn.ModuleList(LayerNorm(d_model, norm_eps) for _ in range(n_layers))
        self.mlps = nn.ModuleList(ElasticMLP(d_model, d_ff, dropout=dropout) for _ in range(n_layers))
        self.norm_f = LayerNorm(d_model, norm_eps)

    def forward(
        self,
        x: Tensor,
        timeline: Timeline | None = None,
        *,
        state: FlatState | None = None,
        return_state: bool = False,
        bus: Bus | None = None,
        subnet: Subnet | None = None,
    ) -> Any:
        depth, width = self.full if subnet is None else subnet
        if not 0 < depth <= self.full.depth or not 0 < width <= self.full.width:
            raise ValueError(f"a subnet lies within {self.full}; got {subnet}")
        x = hide(self.in_proj(hide(x, timeline)), timeline)
        states = []
        for i in range(depth):
            x, after = self.mixers[i](x, timeline, state=None if state is None else state.layers[i], bus=bus)
            x = x + self.mlps[i](self.norms[i](x), width)
            states.append(after)
        y = hide(self.norm_f(x), timeline)
        return (y, FlatState(tuple(states))) if return_state else y

    def scan(
        self, x: Tensor, state: FlatState | None = None, timeline: Timeline | None = None, bus: Bus | None = None, *,
        subnet: Subnet | None = None,
    ) -> tuple[Tensor, State]:  # fmt: skip
        """``(y, state)``: a chunk."""
        return self(x, timeline, state=state, return_state=True, bus=bus, subnet=subnet)  # type: ignore[no-any-return]

    def step(self, x: Tensor, state: FlatState, timeline: Timeline | None = None, bus: Bus | None = None) -> tuple[Tensor, State]:
        """One frame, (B, d_input)."""
        line = None if timeline is None else timeline.as_sequence()
        y, state = self(x.unsqueeze(1), line, state=state, return_state=True, bus=bus)
        return y.squeeze(1), state

    def init_state(
        self,
        batch_size: int,
        *,
        space: Sequence[int] = (),
        capacity: int | None = None,
        context: Any = None,
        device: torch.device | str | None = None,
    ) -> FlatState:
        """Every layer's."""
        where: dict[str, Any] = {"space": space, "capacity": capacity, "context": context, "device": device}
        return FlatState(tuple(block.init_state(batch_size, **where) for block in self.mixers))  # type: ignore[operator]

    def parameters_of(self, subnet: Subnet) -> int:
        """How many parameters a subnet has."""
        d_model, width = self.in_proj.out_features, subnet.width
        shared = sum(p.numel() for module in (self.in_proj, self.norm_f) for p in module.parameters())
        layers = (p.numel() for i in range(subnet.depth) for module in (self.mixers[i], self.norms[i]) for p in module.parameters())
        return shared + sum(layers) + subnet.depth * (2 * d_model * width + width + d_model)


def sandwich(
    model: Transducer,
    x: Tensor,
    targets: Tensor,
    frames: Tensor,
    labels: Tensor,
    subnets: Iterable[Subnet],
    timeline: Timeline | None = None,
) -> dict[str, float]:
    """Add up the gradients of one step: the whole network by the transducer's loss, then every subnet towards the whole one's distribution
    at every node of a row's lattice, by the adaptive alpha-divergence. Returns the losses by name."""
    logits = model(x, targets, timeline)
    loss = model.loss(logits, targets, frames, labels)
    loss.backward()
    losses, teacher = {"full": float(loss.detach())}, logits.detach()
    t, u = (torch.arange(n, device=x.device) for n in logits.shape[1:3])
    inside = (t < frames.unsqueeze(1)).unsqueeze(2) & (u <= labels.unsqueeze(1)).unsqueeze(1)
    for subnet in subnets:
        divergence = adaptive_divergence(model(x, targets, timeline, subnet=subnet), teacher)
        loss = torch.where(inside, divergence, 0).sum() / inside.sum()
        loss.backward()
        losses[f"depth {subnet.depth}, width {subnet.width}"] = float(loss.detach())
    return losses


register_model(
    "todm-tiny",
    Spec(ElasticEncoder, d_input=6, d_model=8, mixer=Spec(MultiHeadSSM, heads=2, d_state=2), n_layers=1, d_ff=10),
    family=FAMILY,
    tiny=True,
)
