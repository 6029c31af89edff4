"""Sequences as maps: a mixer of images where a sequence's neighbours stand below it, too."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from statescan.mixers.ss2d import SS2D
from statescan.ops.checks import check_positive
from statescan.protocols import Bus, Mixer
from statescan.registry import register
from statescan.spec import Spec
from statescan.timeline import Timeline


@register
class Grid(Mixer):
    """A mixer of maps on a sequence, whose positions are laid row by row into a map ``width`` cells wide::

        y = mixer(x as (B, ceil(L / width), width, D)) as (B, L, D)          (zeros fill the last row)

    So a picture that comes as a sequence of pixels is seen as a picture.

    Args:
        d_model: width D of the features.
        mixer: what builds the mixer of maps from it, for example :class:`SS2D`.
        width: cells of a row of the map.

    Shapes: (B, L, D) -> (B, L, D). It looks everywhere, so it has no state. Each document of a timeline is a map of its own, and positions
    that do not exist take no cell.
    """

    gathers_documents = True
    folds_length = True
    examples = ({"mixer": Spec(SS2D, d_state=2), "width": 3},)

    def __init__(self, d_model: int, mixer: Callable[[int], Mixer] = Spec(SS2D), *, width: int) -> None:
        super().__init__()
        check_positive(width=width)
        self.width = width
        self.mixer = mixer(d_model)
        if not isinstance(self.mixer, Mixer) or self.mixer.space_ndim != 1:
            raise ValueError(f"Grid needs a mixer of maps (B, H, W, D), for example SS2D; {type(self.mixer).__name__} is none")
        self.residual_outputs = tuple(f"mixer.{name}" for name in self.mixer.residual_outputs)  # type: ignore[misc]

    def forward(self, x: Tensor, timeline: Timeline | None = None, *, bus: Bus | None = None) -> Tensor:
        if timeline is None or timeline.without_interval("Grid").plain:
            return self._mixed(x)
        return timeline._replace(interval=None).apart(lambda document, _: self._mixed(document), x)

    def _mixed(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        maps = F.pad(x, (0, 0, 0, -length % self.width)).unflatten(1, (-1, self.width))
        y: Tensor = self.mixer(maps)
        return y.flatten(1, 2)[:, :length]

    def extra_repr(self) -> str:
        return f"width={self.width}"
