"""Routes over a regular grid, and the ways to make new ones of old."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from statescan.routes.base import BaseRoute
from statescan.timeline import Timeline


def cells(space: Sequence[int]) -> Tensor:
    """The raster indices as a grid."""
    return torch.arange(math.prod(space), device="cpu").reshape(tuple(space))


def line_starts(space: Sequence[int], line: int) -> Timeline:
    """A timeline that begins anew every ``line`` positions."""
    return Timeline(reset=(torch.arange(math.prod(space), device="cpu") % line == 0).unsqueeze(0))


@dataclass(frozen=True)
class Row(BaseRoute):
    """Row by row, the last axis fastest: order(t) = t. With ``reset`` every row is a sequence of its own."""

    name: ClassVar[str] = "row"
    reset: bool = False

    def visit(self, space: tuple[int, ...]) -> Tensor:
        return cells(space).reshape(-1)

    def timeline(self, space: Sequence[int]) -> Timeline | None:
        return line_starts(space, space[-1]) if self.reset else None


@dataclass(frozen=True)
class Column(BaseRoute):
    """Column by column, the first axis fastest; on (H, W): order(t) = (t mod H) W + t div H. With ``reset`` every column is its own."""

    name: ClassVar[str] = "col"
    reset: bool = False

    def visit(self, space: tuple[int, ...]) -> Tensor:
        return cells(space).permute(*reversed(range(len(space)))).reshape(-1)

    def timeline(self, space: Sequence[int]) -> Timeline | None:
        return line_starts(space, space[0]) if self.reset else None


@dataclass(frozen=True)
class Snake(BaseRoute):
    """There and back: lines along ``axis`` in turn, every other one backwards, so that neighbours in the sequence touch on the grid.

    On (H, W) with axis -1: i = t div W, r = t mod W, j = r if i is even else W - 1 - r. With more axes, slices alternate likewise.
    """

    name: ClassVar[str] = "snake"
    axis: int = -1

    def visit(self, space: tuple[int, ...]) -> Tensor:
        grid = cells(space).movedim(check_axis(self, self.axis, space), -1)
        while grid.ndim > 1:
            line, back = torch.arange(grid.shape[-2], device="cpu").unsqueeze(1), grid.flip(-1)
            grid = torch.where(line % 2 == 1, back, grid).flatten(-2)
        return grid.reshape(-1)


@dataclass(frozen=True)
class Atrous(BaseRoute):
    """The sub-lattice of every ``step``-th row and column from (row, col), row by row. The step^2 of them cover each cell once.

    The lattice must not be empty: a grid of fewer rows than ``row + 1`` raises.
    """

    name: ClassVar[str] = "atrous"
    step: int = 2
    row: int = 0
    col: int = 0

    def visit(self, space: tuple[int, ...]) -> Tensor:
        if len(space) != 2 or not (0 <= self.row < self.step and 0 <= self.col < self.step):
            raise ValueError(f"{self} expects a grid of two axes and 0 <= row, col < step; got a grid of shape {space}")
        order = cells(space)[self.row :: self.step, self.col :: self.step].reshape(-1)
        if not order.numel():
            raise ValueError(f"{self} visits no cell of a grid of shape {space}")
        return order


@dataclass(frozen=True)
class Reverse(BaseRoute):
    """Another route from its end to its beginning."""

    name: ClassVar[str] = "reverse"
    route: BaseRoute

    def visit(self, space: tuple[int, ...]) -> Tensor:
        return self.route.visit(space).flip(0)

    def timeline(self, space: Sequence[int]) -> Timeline | None:
        line = self.route.timeline(space)
        return None if line is None else line.reversed()


@dataclass(frozen=True)
class Transpose(BaseRoute):
    """Another route's rule on the grid with its axes in reverse order, mapped back: ``transpose(row)`` is ``col``."""

    name: ClassVar[str] = "transpose"
    route: BaseRoute

    def visit(self, space: tuple[int, ...]) -> Tensor:
        swapped = cells(space).permute(*reversed(range(len(space))))
        return swapped.reshape(-1)[self.route.visit(tuple(swapped.shape))]

    def timeline(self, space: Sequence[int]) -> Timeline | None:
        return self.route.timeline(tuple(space)[::-1])


@dataclass(frozen=True)
class Mirror(BaseRoute):
    """Another route's rule on the grid flipped along ``axis``, mapped back."""

    name: ClassVar[str] = "mirror"
    route: BaseRoute
    axis: int = -1

    def visit(self, space: tuple[int, ...]) -> Tensor:
        flipped = cells(space).flip(check_axis(self, self.axis, space))
        return flipped.reshape(-1)[self.route.visit(space)]

    def timeline(self, space: Sequence[int]) -> Timeline | None:
        return self.route.timeline(space)


def check_axis(route: BaseRoute, axis: int, space: tuple[int, ...]) -> int:
    if not -len(space) <= axis < len(space):
        raise ValueError(f"{route} names axis {axis} of a grid of {len(space)} axes, shape {space}")
    return axis
