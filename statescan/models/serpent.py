"""Serpent: restoration of images by a U-Net whose blocks scan the map in four directions."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan.blocks.vss import VSSBlock
from statescan.layers.linear import Linear
from statescan.layers.vision import PatchMerge, PatchStem
from statescan.mixers.ss2d import CROSS, SS2D
from statescan.ops.checks import check_positive, check_shape
from statescan.parameters import parameter_groups
from statescan.protocols import Route
from statescan.registry import Family, register, register_model
from statescan.spec import Spec

FAMILY = Family(
    name="serpent",
    title="Serpent: Scalable and Efficient Image Restoration via Multi-scale Structured State Space Models",
    url="https://arxiv.org/abs/2403.17902",
    bibtex="""@article{sepehri2024serpent,
  title={Serpent: Scalable and Efficient Image Restoration via Multi-scale Structured State Space Models},
  author={Sepehri, Mohammad Shahab and Fabian, Zalan and Soltanolkotabi, Mahdi},
  journal={arXiv preprint arXiv:2403.17902},
  year={2024}
}""",
    exact="The idea: a U-Net of selective scans along rows and columns, both ways, whose cost is linear in the pixels.",
    deviates="The released code could not be read. Inside of a block, the ways down and up, the joining of skips and the sizes were chosen "
    "here (see the class), so the count is not a published one.",
)


def spread(x: Tensor, side: int) -> Tensor:
    """Every cell to ``side`` x ``side`` cells: (B, H, W, side^2 D) -> (B, side H, side W, D)."""
    cells = x.unflatten(-1, (side, side, -1)).transpose(2, 3)
    return cells.flatten(3, 4).flatten(1, 2)


class Up(nn.Module):
    """The way up: each cell to four by a Linear, cut to the skip's size, and a Linear over both side by side."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_in)
        self.expand = Linear(d_in, 4 * d_out, bias=False)
        self.join = Linear(2 * d_out, d_out)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = spread(self.expand(self.norm(x)), 2)[:, : skip.shape[1], : skip.shape[2]]
        return self.join(torch.cat([x, skip], -1))


@register
class Serpent(nn.Module):
    """A degraded image to a restored one of the same size, x + net(x), which starts as x::

        stem: patches that do not overlap -> stages of VSSBlocks of SS2D, halved and widened in between -> the same back up, each stage
        joined with the map of its size on the way down -> a 3x3 convolution to the pixels of each patch, zero at first

    The paper fixes the U-Net, the four directions (rows and columns, both ways) and the linear cost. What it leaves open was chosen so: the
    block is the gated one of VMamba without an MLP, each direction has its own parameters, the maps come down by PatchMerge and up by
    a Linear to four cells, and the loss is the mean absolute error.

    Args:
        channels: of an image.
        dims: width of each stage, the finest first.
        depths: blocks in each stage, on the way down and again on the way up; the last stage is passed once.
        patch_size: side of the stem's patches, in pixels.
        d_state: states a channel of the scans.
        ssm_ratio: inner width of a block over its width.
        mlp_ratio: inner width of an MLP behind the scan over the width; 0 has none.
        routes: of the scans (:mod:`statescan.routes`).

    Shapes: (B, C, H, W) -> (B, C, H, W), of any size. No state: it reads windows.
    """

    reads_windows: ClassVar[bool] = True
    """A window in, a result out: there is no position after which to stop, so the laws of sequences do not apply."""

    def __init__(
        self,
        channels: int = 3,
        dims: tuple[int, ...] = (32, 64, 128, 256),
        depths: tuple[int, ...] = (2, 2, 2, 2),
        patch_size: int = 2,
        d_state: int = 16,
        ssm_ratio: float = 2.0,
        mlp_ratio: float = 0.0,
        routes: tuple[str | Route, ...] = CROSS,
    ) -> None:
        super().__init__()
        if not dims or len(dims) != len(depths) or min(*dims, *depths) < 1:
            raise ValueError(f"dims and depths must be positive, one of each a stage; got dims={dims} and depths={depths}")
        check_positive(channels=channels, patch_size=patch_size)
        self.channels, self.patch_size = channels, patch_size

        def stage(i: int) -> nn.Sequential:
            mixer = Spec(SS2D, d_state=d_state, ssm_ratio=ssm_ratio, routes=routes)
            return nn.Sequential(*(VSSBlock(dims[i], mixer, mlp_ratio) for _ in range(depths[i])))

        fine = range(len(dims) - 1)
        self.stem = PatchStem(channels, dims[0], patch_size)
        self.down = nn.ModuleList(stage(i) for i in fine)
        self.merges = nn.ModuleList(PatchMerge(dims[i], dims[i + 1]) for i in fine)
        self.bottom = stage(len(dims) - 1)
        self.ups = nn.ModuleList(Up(dims[i + 1], dims[i]) for i in reversed(fine))
        self.up = nn.ModuleList(stage(i) for i in reversed(fine))
        self.out = nn.Conv2d(dims[0], channels * patch_size**2, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """The restored image."""
        check_shape("x", x, ("B", self.channels, "H", "W"))
        h, skips = self.stem(x), []
        for blocks, merge in zip(self.down, self.merges, strict=True):
            h = blocks(h)
            skips.append(h)
            h = merge(h)
        h = self.bottom(h)
        for way, blocks in zip(self.ups, self.up, strict=True):
            h = blocks(way(h, skips.pop()))
        change = F.pixel_shuffle(self.out(h.permute(0, 3, 1, 2)), self.patch_size)
        return x + change[..., : x.shape[2], : x.shape[3]]

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean absolute error."""
        return F.l1_loss(output, target)

    def parameter_groups(self, weight_decay: float = 0.0, lr: float | None = None) -> list[dict[str, Any]]:
        """Optimiser groups: dynamics, norms and biases without weight decay."""
        return parameter_groups(self, weight_decay=weight_decay, lr=lr)


register_model("serpent-small", Spec(Serpent), family=FAMILY, parameters=2_513_356)
