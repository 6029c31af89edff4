"""Layers of vision backbones: depthwise convolution, stems, downsampling, MLP, stochastic depth. Maps are channels-last, (B, H, W, D).

An image is (B, C, H, W), as everywhere; the stem turns it round. Sizes need not divide: every stage has ceil(size / stride) cells, and
where a layer takes its input in blocks, zeros stand beyond the right and lower edge.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from statescan.layers.linear import Linear
from statescan.registry import register


class DepthwiseConv2d(nn.Conv2d):
    """One odd-sized filter a channel, zeros beyond the edge: (B, H, W, D) -> (B, H, W, D)."""

    def __init__(self, d_model: int, kernel_size: int = 3, bias: bool = True) -> None:
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, or the map would change its size; got {kernel_size}")
        super().__init__(d_model, d_model, kernel_size, padding=kernel_size // 2, groups=d_model, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class DropPath(nn.Module):
    """Stochastic depth: in training, drops a row's whole branch with this probability and scales the others up by 1 / (1 - p)."""

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"a drop probability lies in [0, 1); got {p}")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if self.p == 0 or not self.training:
            return x
        keep = x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(1 - self.p)
        return x * keep.div_(1 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class MLP(nn.Module):
    """fc2(gelu(fc1(x))), ``ratio`` times as wide inside."""

    def __init__(self, d_model: int, ratio: float = 4.0, dropout: float = 0.0) -> None:
        super().__init__()
        hidden = int(d_model * ratio)
        self.fc1, self.fc2 = Linear(d_model, hidden), Linear(hidden, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(x)))))


@register
class PatchStem(nn.Module):
    """One convolution over patches that do not overlap, then LayerNorm: (B, C, H, W) -> (B, ceil(H/p), ceil(W/p), D)."""

    def __init__(self, in_chans: int, d_model: int, patch_size: int = 4) -> None:
        super().__init__()
        self.stride = patch_size
        self.conv = nn.Conv2d(in_chans, d_model, patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(d_model)

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        if height % self.stride or width % self.stride:
            image = F.pad(image, (0, -width % self.stride, 0, -height % self.stride))
        return self.norm(self.conv(image).permute(0, 2, 3, 1))


@register
class ConvStem(nn.Module):
    """Two 3x3 convolutions of stride 2 with LayerNorm behind each and GELU between: (B, C, H, W) -> (B, ceil(H/4), ceil(W/4), D)."""

    stride = 4

    def __init__(self, in_chans: int, d_model: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, d_model // 2, 3, stride=2, padding=1)
        self.norm1 = nn.LayerNorm(d_model // 2)
        self.conv2 = nn.Conv2d(d_model // 2, d_model, 3, stride=2, padding=1)
        self.norm2 = nn.LayerNorm(d_model)

    def forward(self, image: Tensor) -> Tensor:
        x = F.gelu(self.norm1(self.conv1(image).permute(0, 2, 3, 1)))
        return self.norm2(self.conv2(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


@register
class PatchMerge(nn.Module):
    """2x2 cells side by side on channels, in the order (0,0), (1,0), (0,1), (1,1); LayerNorm; Linear without bias.

    (B, H, W, D) -> (B, ceil(H/2), ceil(W/2), D').
    """

    stride = 2

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * d_in)
        self.reduction = Linear(4 * d_in, d_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        if height % 2 or width % 2:
            x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        cells = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # (B, H/2, 2, W/2, 2, D)
        return self.reduction(self.norm(cells.permute(0, 1, 3, 4, 2, 5).flatten(3)))


@register
class ConvDownsample(nn.Module):
    """3x3 convolution of stride 2, then LayerNorm: (B, H, W, D) -> (B, ceil(H/2), ceil(W/2), D')."""

    stride = 2

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(d_in, d_out, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(d_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


def init_linears(module: nn.Module) -> None:
    """The usual start of vision models: every Linear truncated normal of deviation 0.02, with biases at zero."""
    for child in module.modules():
        if isinstance(child, nn.Linear):
            nn.init.trunc_normal_(child.weight, std=0.02)
            if child.bias is not None:
                nn.init.zeros_(child.bias)
