"""HiSS: low-rate targets from high-rate sensors, by two levels of state spaces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from statescan.backbones.flat import FlatBackbone, FlatState
from statescan.backbones.hierarchical import HierarchicalBackbone, StreamState
from statescan.layers.linear import Linear
from statescan.mixers import Mamba
from statescan.mixers.s4 import S4
from statescan.parameters import parameter_groups
from statescan.registry import Family, register, register_model
from statescan.spec import Spec
from statescan.timeline import Timeline, hide

FAMILY = Family(
    name="hiss",
    title="Hierarchical State Space Models for Continuous Sequence-to-Sequence Modeling",
    url="https://arxiv.org/abs/2402.10211",
    bibtex="""@inproceedings{bhirangi2024hierarchical,
  title={Hierarchical State Space Models for Continuous Sequence-to-Sequence Modeling},
  author={Bhirangi, Raunaq and Wang, Chenyu and Pattabiraman, Venkatesh and Majidi, Carmel and Gupta, Abhinav and Hellebrekers, Tess
    and Pinto, Lerrel},
  booktitle={International Conference on Machine Learning},
  year={2024}
}""",
    exact="Both levels, their wiring, the six published sizes and their counts.",
    deviates="Dropout stands inside the S4 layers only, not behind them as well. The channels of the sensors and of the targets are "
    "arguments; 12 and 2 are those of RoNIN.",
)


@register
class HiSS(nn.Module):
    """Two levels and a read-out at the rate of the chunks.

    Args:
        channels: values a sample.
        d_output: values a chunk.
        low: factory of the backbone over samples.
        high: factory of the backbone over chunks.
        chunk: samples a chunk.

    The contract is :class:`~statescan.backbones.hierarchical.HierarchicalBackbone`'s, with (B, T, d_output) coming out; :meth:`predict`
    takes samples.
    """

    def __init__(
        self, channels: int, d_output: int, low: Callable[[], FlatBackbone], high: Callable[[], FlatBackbone], chunk: int = 10
    ) -> None:
        super().__init__()
        self.backbone = HierarchicalBackbone(channels, chunk, low, high)
        self.d_input = chunk * channels
        self.output = Linear(self.backbone.d_model, d_output)

    def forward(self, x: Tensor, timeline: Timeline | None = None, *, state: FlatState | None = None, return_state: bool = False) -> Any:
        """Chunks (B, T, k * channels) -> (B, T, d_output)."""
        h, state = self.backbone(x, timeline, state=state, return_state=True)
        y = hide(self.output(h.to(x.dtype)), timeline)
        return (y, state) if return_state else y

    def predict(self, samples: Tensor, timeline: Timeline | None = None) -> Tensor:
        """Samples (B, k T, channels) -> (B, T, d_output); the timeline speaks of chunks."""
        return self(self.backbone.fold(samples), timeline)  # type: ignore[no-any-return]

    def scan(self, x: Tensor, state: FlatState | None = None, timeline: Timeline | None = None) -> tuple[Tensor, FlatState]:
        """``(y, state)``: some chunks."""
        return self(x, timeline, state=state, return_state=True)  # type: ignore[no-any-return]

    def step(self, x: Tensor, state: FlatState, timeline: Timeline | None = None) -> tuple[Tensor, FlatState]:
        """One chunk: x (B, k * channels)."""
        y, state = self.scan(x.unsqueeze(1), state, None if timeline is None else timeline.as_sequence())
        return y.squeeze(1), state

    def init_state(self, batch_size: int, *, device: torch.device | str | None = None) -> FlatState:
        """The high level's."""
        return self.backbone.init_state(batch_size, device=device)

    def push(self, sample: Tensor, state: StreamState) -> tuple[Tensor, Tensor, StreamState]:
        """One sample (B, channels) of a stream begun by ``backbone.init_stream``: y (B, d_output), which rows have one, the state."""
        h, complete, state = self.backbone.push(sample, state)
        return torch.where(complete.unsqueeze(-1), self.output(h.to(sample.dtype)), 0), complete, state

    def loss(self, output: Tensor, target: Tensor, timeline: Timeline | None = None) -> Tensor:
        """Mean squared error over the chunks that exist."""
        error = (output - target).square()
        if timeline is None or timeline.mask is None:
            return error.mean()
        mask = timeline.expand(*output.shape[:2]).mask
        assert mask is not None
        return error[mask].mean()

    def parameter_groups(self, weight_decay: float = 0.0, lr: float | None = None) -> list[dict[str, Any]]:
        """Optimiser groups."""
        return parameter_groups(self, weight_decay=weight_decay, lr=lr)


def stack(kind: str, depth: int, width: int, d_state: int = 64) -> Spec[FlatBackbone]:
    """Pre-norm layers: S4, with no norm behind the last, or Mamba, with one."""
    parts = {"S": Spec(S4, d_state=d_state, dropout=0.1)} if kind == "s4" else {"S": Spec(Mamba)}
    return Spec(FlatBackbone, d_model=width, layers=f"S*{depth}", parts=parts, norm="layer", norm_f=kind != "s4", residual_in_fp32=False)


_SIZES = {
    "marker-writing": (("s4", 6, 256), ("mamba", 6, 128), 1_926_018),
    "slip": (("s4", 6, 256), ("mamba", 4, 256), 3_012_098),
    "joystick": (("s4", 4, 256), ("mamba", 4, 256), 2_615_810),
    "ronin": (("s4", 6, 256), ("s4", 6, 128), 1_623_170),
    "total-capture": (("s4", 6, 256), ("mamba", 4, 128), 1_692_546),
    "vector": (("mamba", 4, 32), ("mamba", 4, 64), 173_858),
}
for _name, (_low, _high, _count) in _SIZES.items():
    register_model(
        f"hiss-{_name}", Spec(HiSS, channels=12, d_output=2, low=stack(*_low), high=stack(*_high)), family=FAMILY, parameters=_count
    )

register_model(
    "hiss-tiny",
    Spec(HiSS, channels=2, d_output=3, chunk=3, low=stack("s4", 1, 6, d_state=4), high=stack("mamba", 1, 8)),
    family=FAMILY,
    tiny=True,
)
