"""SaShiMi: state space layers at several rates over raw audio, one of 256 mu-law tokens a sample; and as the denoiser of a diffusion."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from statescan.backbones import PoolUNet
from statescan.blocks import Whole
from statescan.heads import LanguageModel
from statescan.heads.sound import SoundModel
from statescan.layers.linear import Linear
from statescan.mixers import S4D
from statescan.mixers.s4 import S4
from statescan.mixers.two_sided import TwoSided
from statescan.ops.checks import check_positive, check_shape
from statescan.protocols import Mixer
from statescan.registry import Family, register, register_model
from statescan.spec import Spec

FAMILY = Family(
    name="sashimi",
    title="It's Raw! Audio Generation with State-Space Models",
    url="https://arxiv.org/abs/2202.09729",
    bibtex="""@inproceedings{goel2022sashimi,
  title={It's Raw! Audio Generation with State-Space Models},
  author={Goel, Karan and Gu, Albert and Donahue, Chris and R{\\'e}, Christopher},
  booktitle={International Conference on Machine Learning},
  year={2022}
}""",
    exact="Layers, wiring, causal pooling, and parameter counts as in the released code (with its gated S4 layer), of the denoiser too.",
    deviates="Any length goes into the autoregressive model: an unfinished block waits in the state. The denoiser's norms have an "
    "epsilon, and its coarse stages see a spectrogram's frames where they sound (the released code's way is a flag).",
)


def _network(mixer: Spec[Any], **arguments: Any) -> dict[str, Any]:
    """Layers and parts of a language model that is one PoolUNet."""
    return {
        "layers": "W",
        "parts": {"W": Spec(Whole, network=Spec(PoolUNet, mixer=mixer, **arguments))},
        "norm": "layer",
        "tie_embeddings": False,
        "head_bias": True,
    }


register_model(
    "sashimi-sc09",
    Spec(SoundModel, d_model=64, network=Spec(PoolUNet, mixer=Spec(S4, n_ssm=1)), rate=16000),
    family=FAMILY,
    parameters=4_731_136 + 33_024,
)

register_model(
    "sashimi-small",  # a size of the library's own, for a processor
    Spec(SoundModel, d_model=32, network=Spec(PoolUNet, mixer=Spec(S4, n_ssm=1), n_layers=2), rate=8000),
    family=FAMILY,
    parameters=375_296 + 16_704,
)


class ScalarNorm(nn.Module):
    """gain (x - mean + shift) / std over the channels, with one gain and one shift for all of them."""

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.gain, self.shift = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, dim=-1, correction=0, keepdim=True)
        return self.gain * (x - mean + self.shift) * torch.rsqrt(variance + self.eps)


def normed_linear(inputs: int, outputs: int) -> nn.Module:
    """A Linear with its weight in directions and lengths."""
    layer = Linear(inputs, outputs)
    nn.init.kaiming_normal_(layer.weight)
    return weight_norm(layer)


class MelUpsampler(nn.Module):
    """Spectrogram (B, bands, frames) -> (B, L, D): learned interpolation by every stride, the mean of ``rate`` samples, a Linear."""

    def __init__(self, bands: int, d_model: int, strides: tuple[int, ...], rate: int) -> None:
        super().__init__()
        self.rate = rate
        self.upsample = nn.ModuleList(
            weight_norm(nn.ConvTranspose2d(1, 1, (3, 2 * s), stride=(1, s), padding=(1, s // 2))) for s in strides
        )
        self.proj = normed_linear(bands, d_model)

    def forward(self, mel: Tensor, length: int) -> Tensor:
        h = mel.unsqueeze(1)
        for layer in self.upsample:
            h = F.leaky_relu(layer(h), 0.4)
        h = h.squeeze(1)
        if h.shape[2] < length * self.rate:
            raise ValueError(f"the spectrogram covers {h.shape[2]} samples of {length * self.rate}: it needs more frames")
        return self.proj(h[..., : length * self.rate].unflatten(2, (length, self.rate)).mean(3).mT)


class DenoiserBlock(nn.Module):
    """x + mixer(norm(x) + step) + spectrogram, then x + ff(norm(x))."""

    def __init__(self, d_model: int, mixer: nn.Module, ff: int, d_step: int, mel: nn.Module | None) -> None:
        super().__init__()
        self.norm1, self.norm2 = ScalarNorm(), ScalarNorm()
        self.step = Linear(d_step, d_model)
        self.mixer = mixer
        self.mel = mel
        self.ff = nn.Sequential(normed_linear(d_model, ff * d_model), nn.GELU(), normed_linear(ff * d_model, d_model))

    def forward(self, x: Tensor, step: Tensor, mel: Tensor | None) -> Tensor:
        y = self.mixer(self.norm1(x) + self.step(step).unsqueeze(1))
        if self.mel is not None:
            y = y + self.mel(mel, x.shape[1])
        x = x + y
        return x + self.ff(self.norm2(x))


class DenoiserStage(nn.Module):
    """A U-Net of blocks that look both ways: like :class:`statescan.backbones.PoolUNet` with ``unet``, but a block of positions reads
    the coarse position that stands for itself."""

    def __init__(
        self, d_model: int, n_layers: int, pool: tuple[int, ...], expand: int, block: Callable[[int, int], nn.Module], rate: int = 1
    ) -> None:
        super().__init__()
        self.pool = pool[0] if pool else 1
        self.up = nn.ModuleList(block(d_model, rate) for _ in range(n_layers))
        self.down = nn.ModuleList(block(d_model, rate) for _ in range(n_layers if pool else 0))
        if pool:
            self.reduce = normed_linear(d_model * pool[0], d_model * expand)
            self.inner = DenoiserStage(d_model * expand, n_layers, pool[1:], expand, block, rate * pool[0])
            self.restore = normed_linear(d_model * expand, d_model * pool[0])

    def forward(self, x: Tensor, step: Tensor, mel: Tensor | None) -> Tensor:
        streams = [x]
        for block in self.down:
            x = block(x, step, mel)
            streams.append(x)
        entered = x
        if self.down:
            coarse = self.inner(self.reduce(x.unflatten(1, (-1, self.pool)).transpose(2, 3).flatten(2)), step, mel)
            x = streams.pop() + self.restore(coarse).unflatten(2, (-1, self.pool)).transpose(2, 3).flatten(1, 2)
        for block in self.up:
            x = block(x, step, mel)
            x = x + streams.pop() if self.down else x
        return x if self.down else x + entered


@register
class SashimiDenoiser(nn.Module):
    """The noise in a waveform, from the waveform and the step of the diffusion (:class:`statescan.heads.waveform.NoiseSchedule`).

    Args:
        d_model: width D of the finest stage.
        mixer: factory of the blocks' mixer, which may look both ways, given the width of its stage.
        n_layers: blocks on each way through a stage.
        pool: block sizes, from the finest stage on.
        expand: growth of the width from a stage to the next coarser.
        ff: inner width of the position-wise layers, in widths.
        channels: of the waveform.
        mel_bands: with it, a spectrogram conditions the waveform.
        mel_upsample: strides by which its frames become samples.
        mel_aligned: a coarse position sees the frames of its own samples. False: as the released code has it, position i of every stage
            sees what belongs to sample i.

    Shapes: waveform (B, L, channels), L a multiple of the product of ``pool``; steps int64 (B,); spectrogram (B, bands, frames), with
    frames times the strides at least L. Output: like the waveform; zero before training.
    """

    def __init__(
        self,
        d_model: int = 128,
        mixer: Callable[[int], Mixer] = Spec(TwoSided, mixer=Spec(S4)),
        n_layers: int = 6,
        pool: tuple[int, ...] = (4, 4),
        expand: int = 2,
        ff: int = 2,
        channels: int = 1,
        mel_bands: int | None = None,
        mel_upsample: tuple[int, ...] = (16, 16),
        mel_aligned: bool = True,
    ) -> None:
        super().__init__()
        check_positive(d_model=d_model, n_layers=n_layers, expand=expand, ff=ff, channels=channels)
        self.channels, self.mel_bands, self.stride = channels, mel_bands, math.prod(pool)
        self.in_proj = normed_linear(channels, d_model)
        self.step = nn.Sequential(Linear(128, 512), nn.SiLU(), Linear(512, 512), nn.SiLU())

        def block(width: int, rate: int) -> nn.Module:
            mel = None if mel_bands is None else MelUpsampler(mel_bands, width, mel_upsample, rate if mel_aligned else 1)
            return DenoiserBlock(width, mixer(width), ff, 512, mel)

        self.stages = DenoiserStage(d_model, n_layers, pool, expand, block)
        self.norm = ScalarNorm()
        last = Linear(d_model, channels)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.out_proj = nn.Sequential(normed_linear(d_model, d_model), nn.ReLU(), last)

    def forward(self, x: Tensor, t: Tensor, mel: Tensor | None = None) -> Tensor:
        check_shape("x", x, ("B", "L", self.channels))
        if x.shape[1] % self.stride:
            raise ValueError(f"the length must be a multiple of {self.stride}, the product of the block sizes; got {x.shape[1]}: pad it")
        if (mel is None) != (self.mel_bands is None):
            raise ValueError("a denoiser made with mel_bands needs a spectrogram, and one made without takes none")
        rates = torch.exp(torch.arange(64, device=x.device) * (-math.log(10000) / 63))
        angles = t.unsqueeze(1) * rates
        step = self.step(torch.cat([angles.sin(), angles.cos()], dim=1).to(x.dtype))
        h = self.stages(torch.relu(self.in_proj(x)), step, mel)
        return self.out_proj(self.norm(h))


register_model(
    "sashimi-diffusion-sc09",
    Spec(SashimiDenoiser, d_model=128, mixer=Spec(TwoSided, mixer=Spec(S4))),
    family=FAMILY,
    parameters=23_470_971,
)

register_model(
    "sashimi-tiny",
    Spec(LanguageModel, vocab_size=19, d_model=8, **_network(Spec(S4D, d_state=2), n_layers=1, pool=(3,))),
    family=FAMILY,
    tiny=True,
)
