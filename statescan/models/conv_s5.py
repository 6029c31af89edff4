"""ConvS5: video prediction by layers whose state is an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from statescan.backbones import FlatBackbone, FlatState
from statescan.blocks.add_norm import AddNorm
from statescan.layers.frames import FrameDecoder, FrameEncoder
from statescan.layers.linear import Linear
from statescan.mixers.conv_s5 import ConvS5
from statescan.ops.checks import check_positive, check_shape
from statescan.parameters import parameter_groups
from statescan.protocols import Bus, Mixer
from statescan.registry import Family, register, register_model
from statescan.spec import Spec
from statescan.timeline import Timeline, hide

FAMILY = Family(
    name="conv-s5",
    introduces=("ConvS5",),
    title="Convolutional State Space Models for Long-Range Spatiotemporal Modeling",
    url="https://arxiv.org/abs/2310.19694",
    bibtex="""@inproceedings{smith2023convolutional,
  title={Convolutional State Space Models for Long-Range Spatiotemporal Modeling},
  author={Smith, Jimmy T.H. and De Mello, Shalini and Kautz, Jan and Linderman, Scott W. and Byeon, Wonmin},
  booktitle={Advances in Neural Information Processing Systems},
  year={2023}
}""",
    exact="Layers, frame encoder and decoder, wiring and parameter count of the Moving-MNIST model of the released code.",
    deviates="The models on discrete codes (with a MaskGit prior) are left out.",
)


@register
class VideoPredictor(nn.Module):
    """Frames to the next frames: encoder, the action beside it, blocks norm(x + mixer(x)) over maps, decoder, tanh.

    Args:
        d_model: width D of the maps.
        mixer: factory of the blocks' causal mixer over maps, given the width.
        n_layers: blocks.
        channels: of a frame.
        widths: of the encoder, and backwards of the decoder; frames shrink by 2^(their number - 1).
        actions: kinds of actions, besides the absent one, 0.
        d_action: width of an action's embedding.
        groups: of the frame layers' norms.

    Shapes: frames (B, L, H, W, C) -> predictions of the frames that follow, the same shape. ``actions`` int64 (B, L): the one that leads
    from a frame to the next; None is 0 throughout. The contract is a causal mixer's; the state is a FlatState.
    """

    space_ndim = 2

    def __init__(
        self,
        d_model: int = 256,
        mixer: Callable[[int], Mixer] = Spec(ConvS5),
        n_layers: int = 8,
        channels: int = 1,
        widths: tuple[int, ...] = (64, 128, 256),
        actions: int = 1,
        d_action: int = 1,
        groups: int = 32,
    ) -> None:
        super().__init__()
        check_positive(d_model=d_model, n_layers=n_layers, channels=channels, actions=actions, d_action=d_action)
        self.d_input = channels
        self.encoder = FrameEncoder(channels, widths, groups)
        self.action = nn.Embedding(actions + 1, d_action)
        self.join = Linear(widths[-1] + d_action, d_model)
        self.backbone = FlatBackbone(
            d_model, "C" * n_layers, {"C": lambda width: AddNorm(width, mixer(width), 1e-6, "layer")}, norm_f=False, residual_in_fp32=False
        )
        self.decoder = FrameDecoder(d_model, channels, widths, groups)

    def forward(
        self,
        x: Tensor,
        timeline: Timeline | None = None,
        *,
        state: FlatState | None = None,
        return_state: bool = False,
        actions: Tensor | None = None,
        bus: Bus | None = None,
    ) -> Any:
        check_shape("x", x, ("B", "L", "H", "W", self.d_input))
        maps = self.encoder(hide(x, timeline))
        if actions is None:
            actions = torch.zeros(x.shape[:2], dtype=torch.long, device=x.device)
        check_shape("actions", actions, tuple(x.shape[:2]))
        action = self.action(actions)[:, :, None, None].expand(*maps.shape[:-1], -1)
        h, state = self.backbone(self.join(torch.cat([maps, action], dim=-1)), timeline, state=state, return_state=True, bus=bus)
        y = hide(torch.tanh(self.decoder(h)), timeline)
        return (y, state) if return_state else y

    def scan(
        self, x: Tensor, state: FlatState | None = None, timeline: Timeline | None = None, bus: Bus | None = None, *,
        actions: Tensor | None = None,
    ) -> tuple[Tensor, FlatState]:  # fmt: skip
        """``(y, state)``: a chunk."""
        return self(x, timeline, state=state, return_state=True, actions=actions, bus=bus)  # type: ignore[no-any-return]

    def step(
        self, x: Tensor, state: FlatState, timeline: Timeline | None = None, bus: Bus | None = None, *, action: Tensor | None = None
    ) -> tuple[Tensor, FlatState]:
        """One frame a row, (B, H, W, C), and the action that follows it, (B,)."""
        line = None if timeline is None else timeline.as_sequence()
        actions = None if action is None else action.unsqueeze(1)
        y, state = self(x.unsqueeze(1), line, state=state, return_state=True, actions=actions, bus=bus)
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
        """The blocks', for frames of the size ``space``, (H, W)."""
        maps = tuple(size // self.encoder.stride for size in space)
        return self.backbone.init_state(batch_size, space=maps, capacity=capacity, context=context, device=device)

    @torch.no_grad()
    def imagine(self, frames: Tensor, steps: int, *, actions: Tensor | None = None) -> Tensor:
        """Continue (B, L, H, W, C) by ``steps`` frames, each fed back; actions (B, L + steps - 1), or None. Returns (B, steps, H, W, C)."""
        length = frames.shape[1]
        y, state = self.scan(frames, actions=None if actions is None else actions[:, :length])
        frame, made = y[:, -1], [y[:, -1]]
        for i in range(steps - 1):
            frame, state = self.step(frame, state, action=None if actions is None else actions[:, length + i])
            made.append(frame)
        return torch.stack(made, dim=1)

    def loss(self, output: Tensor, target: Tensor, weight: float = 0.5) -> Tensor:
        """weight (squared error) + (1 - weight) (absolute error), summed over a frame's last two axes, and the mean of the rest."""
        squared, absolute = (output - target).square(), (output - target).abs()
        return (weight * squared + (1 - weight) * absolute).sum((-2, -1)).mean()

    def parameter_groups(self, weight_decay: float = 1e-5) -> list[dict[str, Any]]:
        """Optimiser groups: dynamics, norms and biases without weight decay."""
        return parameter_groups(self, weight_decay=weight_decay)


register_model("conv-s5-moving-mnist", Spec(VideoPredictor), family=FAMILY, parameters=21_681_411)

register_model(
    "conv-s5-tiny",
    Spec(VideoPredictor, d_model=4, mixer=Spec(ConvS5, d_state=4, groups=2), n_layers=1, widths=(4,), groups=2),
    family=FAMILY,
    tiny=True,
)
