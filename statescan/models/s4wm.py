"""S4WM: a world model that trains on whole sequences in parallel and imagines step by step."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from statescan.backbones import FlatBackbone, FlatState
from statescan.heads.world import CategoricalLatent, GaussianLatent, Latent, balanced_divergence
from statescan.layers.frames import FrameDecoder, FrameEncoder
from statescan.layers.linear import Linear
from statescan.layers.mlp import MLP
from statescan.mixers import S4
from statescan.ops.checks import check_positive, check_shape
from statescan.parameters import parameter_groups
from statescan.registry import Family, register, register_model
from statescan.spec import Spec
from statescan.timeline import Timeline, hide

FAMILY = Family(
    name="s4wm",
    title="Facing Off World Model Backbones: RNNs, Transformers, and S4",
    url="https://arxiv.org/abs/2307.02064",
    bibtex="""@inproceedings{deng2023facing,
  title={Facing Off World Model Backbones: RNNs, Transformers, and {S4}},
  author={Deng, Fei and Park, Junyeong and Ahn, Sungjin},
  booktitle={Advances in Neural Information Processing Systems},
  year={2023}
}""",
    exact="The model's equations: posterior of single frames, layers over latents and actions, prior, decoder, balanced divergence.",
    deviates="The authors released no code: sizes and blocks follow an independent port, frame encoder and decoder are this library's. "
    "The counts are not published ones.",
)


class WorldOutput(NamedTuple):
    """What a world model makes of frames 0 ... L - 1: entries t = 1 ... L - 1."""

    h: Tensor
    """(B, L - 1, D): from all latents and actions before t."""
    z: Tensor
    """(B, L, Z): sampled from the posteriors, of every frame."""
    posterior: Tensor
    prior: Tensor
    """(B, L - 1, features)."""
    frames: Tensor
    """(B, L - 1, H, W, C): decoded from h and z."""


def _line(timeline: Timeline | None, frames: Tensor) -> Timeline | None:
    return None if timeline is None else timeline.without_interval("WorldModel").expand(*frames.shape[:2])


def _mlp(inputs: int, width: int, outputs: int, hidden: int) -> nn.Sequential:
    widths = [inputs] + [width] * hidden
    layers = [layer for a, b in pairwise(widths) for layer in (Linear(a, b), nn.SiLU())]
    return nn.Sequential(*layers, Linear(widths[-1], outputs))


@register
class WorldModel(nn.Module):
    """Frames x_t and actions a_t (which lead from x_t to x_{t+1}) as latents z_t::

        z_t ~ q(z_t | x_t)                                   (from the frame alone, so all at once)
        h_t = layers(g(z_0, a_0), ..., g(z_{t-1}, a_{t-1}))  (a convolution in training, a recurrence in imagination)
        p(z_t | h_t),   x_t ~ N(decoder(h_t, z_t), 1)
        loss = - log p(x_t | h_t, z_t) + beta [alpha KL(held q | p) + (1 - alpha) KL(q | held p)]   (each at least ``free`` nats)

    A row may hold several episodes, and padding: a reset on the timeline of the frames marks an episode's first one. Nothing of an episode
    reaches the next, and a frame without one before it in its episode is not foreseen: it does not count in the loss.

    Args:
        d_model: width D of the layers.
        size: height and width of a frame.
        channels: of a frame.
        d_action: width of an action; one-hot rows for kinds of them.
        latent: makes the kind of latent.
        layers, parts: of the :class:`FlatBackbone`; None for parts is an S4 layer S and an MLP F.
        widths, groups: of the frame encoder and decoder.
        beta, alpha, free: of the loss, see above.

    Shapes: frames (B, L, H, W, C) and actions (B, L - 1, d_action) -> :class:`WorldOutput`.
    """

    reads_windows: ClassVar[bool] = True
    """It samples, and its output has one position less than its frames: the laws of sequences hold for its layers."""

    def __init__(
        self,
        d_model: int = 512,
        size: tuple[int, int] = (64, 64),
        channels: int = 3,
        d_action: int = 4,
        latent: Callable[[], Latent] = Spec(CategoricalLatent),
        layers: str = "(SSF)*3",
        parts: dict[str, Callable[[int], nn.Module]] | None = None,
        widths: tuple[int, ...] = (32, 64, 128, 256),
        groups: int = 8,
        beta: float = 1.0,
        alpha: float = 0.8,
        free: float = 1.0,
    ) -> None:
        super().__init__()
        check_positive(d_model=d_model, channels=channels, d_action=d_action)
        self.latent, self.size, self.channels, self.d_action = latent(), size, channels, d_action
        self.beta, self.alpha, self.free = beta, alpha, free
        self.encoder = FrameEncoder(channels, widths, groups)
        stride = self.encoder.stride
        if size[0] % stride or size[1] % stride or min(size) < 1:
            raise ValueError(f"frames must be multiples of {stride} high and wide, for {len(widths)} widths; got {size}")
        self.cells = (size[0] // stride, size[1] // stride, widths[-1])
        seen = self.cells[0] * self.cells[1] * self.cells[2]
        self.posterior = _mlp(seen, d_model, self.latent.features, 1)
        self.g = _mlp(self.latent.width + d_action, d_model, d_model, 1)
        if parts is None:
            parts = {"S": Spec(S4, dropout=0.1), "F": Spec(MLP, d_ff=d_model, activation="gelu", bias=True)}
        self.backbone = FlatBackbone(d_model, layers, parts, norm="layer", norm_f=False)
        self.prior = _mlp(d_model, d_model, self.latent.features, 2)
        self.spread = Linear(d_model + self.latent.width, seen)
        self.decoder = FrameDecoder(widths[-1], channels, widths, groups)

    def forward(
        self, frames: Tensor, actions: Tensor, timeline: Timeline | None = None, *, generator: torch.Generator | None = None
    ) -> WorldOutput:
        """All positions at once; the timeline is that of the frames."""
        check_shape("frames", frames, ("B", "L", *self.size, self.channels))
        check_shape("actions", actions, (frames.shape[0], frames.shape[1] - 1, self.d_action))
        line = _line(timeline, frames)
        posterior = self.observe(hide(frames, line))
        z = self.latent.sample(posterior, generator)
        line = None if line is None else line.slice(0, frames.shape[1] - 1)  # that of what leads from frame to frame
        h = self.backbone(self.g(torch.cat([z[:, :-1], hide(actions, line)], -1)), line)
        return WorldOutput(h, z, posterior[:, 1:], self.prior(h), self.decode(h, z[:, 1:]))

    def observe(self, frames: Tensor) -> Tensor:
        """Frames (..., H, W, C) -> features of their posteriors."""
        return self.posterior(self.encoder(frames).flatten(-3))

    def decode(self, h: Tensor, z: Tensor) -> Tensor:
        """The mean of the frames, (..., H, W, C)."""
        return self.decoder(self.spread(torch.cat([h, z], -1)).unflatten(-1, self.cells))

    def loss(self, output: WorldOutput, frames: Tensor, timeline: Timeline | None = None) -> Tensor:
        """Mean over positions of the negative log-likelihood, up to a constant, and the divergence; ``frames`` are all L of them.

        A frame counts if it and the one before it exist, in one episode.
        """
        line = _line(timeline, frames)
        error = 0.5 * (output.frames - hide(frames, line)[:, 1:]).square().sum((-3, -2, -1))
        divergence = balanced_divergence(self.latent, output.posterior, output.prior, self.alpha, self.free)
        each = error + self.beta * divergence
        if line is None or line.plain:
            return each.mean()
        counts = torch.ones_like(each, dtype=torch.bool) if line.reset is None else ~line.reset[:, 1:]
        if line.mask is not None:
            counts = counts & line.mask[:, 1:] & line.mask[:, :-1]
        return torch.where(counts, each, 0).sum() / counts.sum().clamp(min=1)

    def advance(self, z: Tensor, action: Tensor, state: FlatState) -> tuple[Tensor, FlatState]:
        """One step of the recurrence: z (B, Z) and the action that follows, (B, d_action) -> the next h (B, D)."""
        return self.backbone.step(self.g(torch.cat([z, action], -1)), state)  # type: ignore[return-value]

    @torch.no_grad()
    def imagine(
        self,
        frames: Tensor,
        actions: Tensor,
        timeline: Timeline | None = None,
        *,
        latents: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Continue frames (B, T, H, W, C), T >= 1, under actions (B, T - 1 + steps, d_action), each latent from the prior.

        Returns h (B, steps, D) and frames (B, steps, H, W, C). ``latents`` (B, steps, Z) stand in for those from the prior, and latents
        (B, T + steps, Z) also for those from the context's posteriors. The timeline is that of the frames.
        """
        check_shape("frames", frames, ("B", "T", *self.size, self.channels))
        length = frames.shape[1]
        steps = actions.shape[1] - length + 1
        if length < 1 or steps < 1:
            raise ValueError(f"imagining takes a frame, and an action for every step behind the last; got {length} and {actions.shape[1]}")
        check_shape("actions", actions, (frames.shape[0], length - 1 + steps, self.d_action))
        line = _line(timeline, frames)
        if line is not None and line.mask is not None and not bool(line.mask[:, -1].all()):
            raise ValueError("imagination goes on from the last frame of a row, which must exist: pad in front")
        if latents is not None and latents.shape[1] == length + steps:
            z, latents = latents[:, :length], latents[:, length:]
        else:
            z = self.latent.sample(self.observe(hide(frames, line)), generator)
        if latents is not None:
            check_shape("latents", latents, (frames.shape[0], steps, self.latent.width))
        context, state = self.backbone.scan(self.g(torch.cat([z, hide(actions[:, :length], line)], -1)), timeline=line)
        h = context[:, -1]
        hs: list[Tensor] = []
        zs: list[Tensor] = []
        for i in range(steps):
            if i:
                h, state = self.advance(zs[-1], actions[:, length - 1 + i], state)
            hs.append(h)
            zs.append(self.latent.sample(self.prior(h), generator) if latents is None else latents[:, i])
        dreamt = torch.stack(hs, 1)
        return dreamt, self.decode(dreamt, torch.stack(zs, 1))

    def parameter_groups(self, weight_decay: float = 0.0, lr: float | None = None) -> list[dict[str, Any]]:
        """Optimiser groups: dynamics, norms and biases without weight decay."""
        return parameter_groups(self, weight_decay=weight_decay, lr=lr)


register_model("s4wm", Spec(WorldModel), family=FAMILY, parameters=44_064_515)
register_model(
    "s4wm-gaussian",
    Spec(WorldModel, latent=Spec(GaussianLatent), channels=1, beta=0.4),
    family=FAMILY,
    parameters=28_137_089,
)
