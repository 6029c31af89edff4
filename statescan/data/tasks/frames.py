"""Digits that move through frames and bounce off the walls: what comes next, and what comes after what one has said oneself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from statescan.backbones import FlatBackbone
from statescan.data.tasks.base import Task, require
from statescan.data.tasks.signals import Signals, SignalTask
from statescan.layers.frames import ImageConv
from statescan.parameters import parameter_groups
from statescan.registry import lookup, register
from statescan.spec import Spec

_ROWS = (
    (14, 17, 19, 21, 25, 17, 14), (4, 12, 4, 4, 4, 4, 14), (14, 17, 1, 2, 4, 8, 31), (31, 2, 4, 2, 1, 17, 14),
    (2, 6, 10, 18, 31, 2, 2), (31, 16, 30, 1, 1, 17, 14), (6, 8, 16, 30, 17, 17, 14), (31, 1, 2, 4, 8, 8, 8),
    (14, 17, 17, 14, 17, 17, 14), (14, 17, 17, 15, 1, 2, 12),
)  # fmt: skip
GLYPHS = (np.array(_ROWS)[..., None] >> np.arange(4, -1, -1) & 1).astype(np.float32)
"""The digits 0 to 9 as seven rows of five dots, (10, 7, 5)."""


class FrameModel(nn.Module):
    """A frame in, the next one out, (B, L, H, W) both: mixers of maps between two convolutions, mixers of sequences between two Linear."""

    def __init__(self, size: int, d_model: int, layers: str, parts: Mapping[str, Callable[[int], nn.Module]]) -> None:
        super().__init__()
        kinds = {_space(parts[letter]) for letter in layers} - {None}
        if len(kinds) > 1:
            raise ValueError("the mixers of one model must all read maps or all read sequences")
        self.maps = kinds == {2}
        self.encoder = ImageConv(1, d_model) if self.maps else nn.Linear(size * size, d_model)
        self.backbone = FlatBackbone(d_model, layers, parts, norm_f=False)
        self.decoder = ImageConv(d_model, 1) if self.maps else nn.Linear(d_model, size * size)

    def forward(self, x: Tensor) -> Tensor:
        """From the beginning."""
        return self._frames(self.backbone(self._features(x)), x)

    def scan(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """A chunk, and the state behind it."""
        h, state = self.backbone(self._features(x), state=state, return_state=True)
        return self._frames(h, x), state

    def _features(self, x: Tensor) -> Tensor:
        return self.encoder(x.unsqueeze(-1) if self.maps else x.flatten(2))  # type: ignore[no-any-return]

    def _frames(self, h: Tensor, x: Tensor) -> Tensor:
        return self.decoder(h).view(x.shape)  # type: ignore[no-any-return]

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One frame a row, (B, H, W)."""
        y, state = self.scan(x.unsqueeze(1), state)
        return y.squeeze(1), state

    def parameter_groups(self, weight_decay: float = 0.1, lr: float | None = None) -> list[dict[str, Any]]:
        """Optimiser groups."""
        return parameter_groups(self, weight_decay=weight_decay, lr=lr)


def _space(part: Any) -> int | None:
    """How many dimensions of space a mixer reads; None of what is no mixer."""
    return getattr(lookup(part.name) if isinstance(part, Spec) else part, "space_ndim", None)


@register
@dataclass(frozen=True)
class MovingDigits(SignalTask):
    """Digits that cross a frame at a constant speed and bounce off its walls, the brighter one where they meet (Srivastava et al. 2015,
    https://arxiv.org/abs/1502.04681, with digits of 7 by 5 dots in place of MNIST's).

    Trained on the next frame, from the third on; tested on it, and on the next ``horizon`` frames continued from ``length``.
    """

    size: int = 16
    digits: int = 1
    speed: float = 1.5
    length: int = 16
    horizon: int = 8
    test_horizon: int = 0

    def __post_init__(self) -> None:
        require(self.size >= 8, f"a digit is 7 by 5 dots and must be able to move: size must be 8 or more; got {self.size}")
        require(self.digits >= 1 and self.speed > 0, f"digits and speed must be positive; got {self.digits} and {self.speed}")
        require(self.length >= 3 and self.horizon >= 1, f"length must be 3 or more, horizon positive; got {self.length} and {self.horizon}")

    def model(self, d_model: int, layers: str, parts: Mapping[str, Callable[[int], nn.Module]]) -> nn.Module:
        return FrameModel(self.size, d_model, layers, parts)

    def tests(self) -> Mapping[str, Task]:
        return {"next frame": self, f"{self.horizon} frames ahead": replace(self, test_horizon=self.horizon)}

    def draw(self, rows: int, rng: np.random.Generator) -> Signals:  # type: ignore[override]
        frames = self.length + self.test_horizon + 1
        room = self.size - np.array(GLYPHS.shape[1:])  # places of a digit's corner besides the first
        which = rng.integers(10, size=(rows, self.digits))
        begin, angle = rng.random((rows, self.digits, 2)), 2 * np.pi * rng.random((rows, self.digits))
        pace = self.speed * np.stack([np.sin(angle), np.cos(angle)], -1) / room
        way = (begin[:, None] + pace[:, None] * np.arange(frames)[:, None, None]) % 2  # there and back again
        corner = np.rint((1 - np.abs(1 - way)) * room).astype(int)  # (rows, frames, digits, 2)
        film = np.zeros((rows, frames, self.size, self.size), np.float32)
        for row, t, i in np.ndindex(rows, frames, self.digits):
            y, x = corner[row, t, i]
            place = film[row, t, y : y + 7, x : x + 5]
            np.maximum(place, GLYPHS[which[row, i]], out=place)
        target = film[:, 1:].copy()
        target[:, : self.length - 1 if self.test_horizon else 2] = np.nan
        return Signals(torch.from_numpy(film[:, :-1]), torch.from_numpy(target), self.test_horizon)
