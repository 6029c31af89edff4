"""A pyramid: stages of blocks on ever coarser and wider maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from statescan.blocks.vss import VSSBlock
from statescan.layers.vision import PatchMerge, PatchStem, init_linears
from statescan.registry import register
from statescan.spec import Spec


class Stage(nn.Module):
    """Blocks of one width, then the way down to the next stage (Identity in the last)."""

    def __init__(self, blocks: list[nn.Module], downsample: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample
        self.gradient_checkpointing = False

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(this stage's features, the next stage's input)."""
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.gradient_checkpointing and torch.is_grad_enabled() else block(x)  # type: ignore[assignment]
        return x, self.downsample(x)


@register
class Pyramid(nn.Module):
    """Stem, then stages of blocks with a downsampling layer between two stages.

    Args:
        in_chans: channels of the image.
        dims: width of each stage; one number is the first, doubled from stage to stage.
        depths: blocks in each stage.
        block: factory of a block over maps (B, H, W, D), given the width, and ``drop_path`` by keyword.
        stem: factory of the first layer, given ``in_chans`` and the first width: (B, C, H, W) -> (B, H', W', D).
        downsample: factory of the layer between two stages, given their widths.
        drop_path_rate: probability of dropping a branch, growing linearly from 0 at the first block to this at the last.

    Shapes: image (B, C, H, W) -> maps (B, ceil(H/s), ceil(W/s), D), channels last, with s = 4, 8, 16, 32 for the usual stem: any size goes.
    Every Linear starts truncated normal; what a mixer initialises by itself (its step's projections and dynamics are no Linears) stays.
    """

    def __init__(
        self,
        in_chans: int = 3,
        dims: int | tuple[int, ...] = 96,
        depths: tuple[int, ...] = (2, 2, 9, 2),
        block: Callable[..., nn.Module] = Spec(VSSBlock),
        stem: Callable[[int, int], nn.Module] = Spec(PatchStem),
        downsample: Callable[[int, int], nn.Module] = Spec(PatchMerge),
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        widths = tuple(dims * 2**i for i in range(len(depths))) if isinstance(dims, int) else tuple(dims)
        if not depths or min(depths) < 1 or len(widths) != len(depths) or min(widths) < 1:
            raise ValueError(f"dims and depths must be positive, one of each a stage; got dims={dims} and depths={depths}")
        self.in_chans, self.dims = in_chans, widths
        total = sum(depths)
        rates = iter([drop_path_rate * i / max(total - 1, 1) for i in range(total)])
        self.stem = stem(in_chans, widths[0])
        self.stages = nn.ModuleList()
        reduction = _stride(self.stem)
        self.feature_info: list[dict[str, Any]] = []
        """For every stage: ``num_chs``, ``reduction`` (how many pixels a cell is wide) and ``module``."""
        for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            last = i == len(widths) - 1
            blocks = [block(width, drop_path=next(rates)) for _ in range(depth)]
            self.stages.append(Stage(blocks, nn.Identity() if last else downsample(width, widths[i + 1])))
            self.feature_info.append({"num_chs": width, "reduction": reduction, "module": f"stages.{i}"})
            reduction *= 1 if last else _stride(self.stages[i].downsample)  # type: ignore[arg-type]
        init_linears(self)

    def forward(self, image: Tensor, all_stages: bool = False) -> Any:
        """The last stage's map, or with ``all_stages`` the list of every stage's."""
        if image.ndim != 4 or image.shape[1] != self.in_chans:
            raise ValueError(f"expected images (batch, {self.in_chans}, height, width); got {tuple(image.shape)}")
        x, features = self.stem(image), []
        for stage in self.stages:
            feature, x = stage(x)
            features.append(feature)
        return features if all_stages else features[-1]

    def set_gradient_checkpointing(self, enabled: bool = True) -> None:
        """Recompute blocks in the backward pass instead of keeping what they compute."""
        for stage in self.stages:
            stage.gradient_checkpointing = enabled  # type: ignore[assignment]


def _stride(layer: nn.Module) -> int:
    stride = getattr(layer, "stride", None)
    if not isinstance(stride, int):
        raise ValueError(f"{type(layer).__name__} must say its stride: give the class or instance an integer attribute 'stride'")
    return stride
