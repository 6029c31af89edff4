"""Frames of a video to coarse maps and back: residual convolutions, one frame at a time. Maps are channels-last, (..., H, W, D).

Paper: Yan et al., "Temporally Consistent Transformers for Video Generation", 2023, https://arxiv.org/abs/2210.02396.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from statescan.layers.linear import Linear
from statescan.registry import register

Padding = Literal["zeros", "circular"]


def channels_last(fn: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A function of images (M, D, H, W) on x (..., H, W, D)."""
    flat = x.reshape(-1, *x.shape[-3:]).permute(0, 3, 1, 2)
    return fn(flat).permute(0, 2, 3, 1).unflatten(0, x.shape[:-3])


class ImageConv(nn.Conv2d):
    """Odd-sized filters, as many cells out as in: (..., H, W, D) -> (..., H, W, D')."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int = 3, padding: Padding = "zeros", bias: bool = True) -> None:
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, or the image would change its size; got {kernel_size}")
        super().__init__(inputs, outputs, kernel_size, padding=kernel_size // 2, padding_mode=padding, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        return channels_last(super().forward, input)


class ImageGroupNorm(nn.GroupNorm):
    """Over each group of channels of an image: (..., H, W, D) -> the same, in the weight's dtype."""

    def __init__(self, groups: int, d_model: int, eps: float = 1e-6) -> None:
        super().__init__(groups, d_model, eps)

    def forward(self, input: Tensor) -> Tensor:
        return channels_last(super().forward, input.to(self.weight.dtype))


class FrameBlock(nn.Module):
    """skip(x) + 0.1 conv(elu(norm(conv(elu(norm(x)))))); the skip is a 1x1 convolution where the width changes."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.skip = nn.Identity() if inputs == outputs else Linear(inputs, outputs, bias=False)
        self.norms = nn.ModuleList(ImageGroupNorm(groups, width) for width in (inputs, outputs))
        self.convs = nn.ModuleList(ImageConv(width, outputs) for width in (inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            h = conv(F.elu(norm(h)))
        return self.skip(x) + 0.1 * h


@register
class FrameEncoder(nn.Module):
    """(..., H, W, C) -> (..., H / s, W / s, D): a convolution and a block, then for every further width the mean of 2x2 cells and a block;
    s = 2^(number of widths - 1), D the last width."""

    def __init__(self, channels: int, widths: tuple[int, ...] = (64, 128, 256), groups: int = 32) -> None:
        super().__init__()
        self.stem = ImageConv(channels, widths[0])
        self.blocks = nn.ModuleList(FrameBlock(a, b, groups) for a, b in zip((widths[0], *widths[:-1]), widths, strict=True))
        self.stride = 2 ** (len(widths) - 1)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-3] % self.stride or x.shape[-2] % self.stride:
            raise ValueError(f"frames must be multiples of {self.stride} high and wide; got {tuple(x.shape[-3:-1])}")
        x = self.stem(x)
        for i, block in enumerate(self.blocks):
            x = block(channels_last(lambda maps: F.avg_pool2d(maps, 2), x) if i else x)
        return x


@register
class FrameDecoder(nn.Module):
    """(..., H / s, W / s, D) -> (..., H, W, C), unbounded: a convolution to the first width, then from the last width to the first a
    block, with every cell doubled between two; a norm and a Linear."""

    def __init__(self, d_model: int, channels: int, widths: tuple[int, ...] = (64, 128, 256), groups: int = 32) -> None:
        super().__init__()
        self.stem = ImageConv(d_model, widths[0])
        order = widths[::-1]
        self.blocks = nn.ModuleList(FrameBlock(a, b, groups) for a, b in zip((widths[0], *order[:-1]), order, strict=True))
        self.norm = nn.LayerNorm(widths[0], eps=1e-6)
        self.out = Linear(widths[0], channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for i, block in enumerate(self.blocks):
            x = block(x.repeat_interleave(2, -3).repeat_interleave(2, -2) if i else x)
        return self.out(self.norm(x))
