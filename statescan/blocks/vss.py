"""The block of vision backbones: a mixer, then an MLP, each in a residual branch."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from statescan.layers.vision import MLP, DropPath
from statescan.mixers.ss2d import SS2D
from statescan.protocols import Mixer
from statescan.registry import register
from statescan.spec import Spec


@register
class VSSBlock(nn.Module):
    """x <- x + drop_path(mixer(norm(x))); then, if ``mlp_ratio`` is positive, x <- x + drop_path(mlp(norm2(x))). Norms are LayerNorms.

    Args:
        d_model: width D.
        mixer: factory of a mixer over maps, given the width.
        mlp_ratio: inner width of the MLP over D; 0 leaves it out.
        drop_path: probability of dropping a row's branch in training.
        mlp_dropout: behind both layers of the MLP.

    Shapes: (B, H, W, D) -> (B, H, W, D).
    """

    def __init__(
        self,
        d_model: int,
        mixer: Callable[[int], Mixer] = Spec(SS2D),
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        mlp_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model)
        self.mixer = mixer(d_model)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(d_model) if mlp_ratio > 0 else None
        self.mlp = MLP(d_model, mlp_ratio, mlp_dropout) if mlp_ratio > 0 else None

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.mixer(self.norm(x)))
        if self.mlp is not None and self.norm2 is not None:
            x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x
