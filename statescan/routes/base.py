"""What every route is: a small immutable object that says in which order the cells of a grid are visited.

A route is data: it prints as the text that makes it (``reverse(col)``), compares, and is hashable. Its tables are built once a grid shape,
on the CPU, and moved once a device.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from statescan.timeline import Timeline


@dataclass(frozen=True)
class BaseRoute(ABC):
    """A route over grids of shape (S_1, ..., S_n). Cells are numbered in row-major order (raster index).

    A subclass gives ``name`` and :meth:`visit`; the inverse, the text and the caching follow.
    """

    name: ClassVar[str]

    @abstractmethod
    def visit(self, space: tuple[int, ...]) -> Tensor:
        """The raster index of each sequence position, int64 (L',), on the CPU; each cell at most once."""

    def timeline(self, space: Sequence[int]) -> Timeline | None:
        """Where the sequence this route makes begins anew, fields (1, L'); None where it is one piece."""
        return None

    def order(self, space: Sequence[int]) -> Tensor:
        """Gather table, int64 (L',): raster index of each sequence position."""
        return tables((self,), tuple(space)).orders[0]

    def inverse(self, space: Sequence[int]) -> Tensor:
        """Sequence position of each raster index, int64 (L,); -1 where the route does not pass."""
        return tables((self,), tuple(space)).inverses[0]

    def __str__(self) -> str:
        given = [(f.name, getattr(self, f.name), f.default) for f in fields(self)]
        arguments = [str(v) if isinstance(v, BaseRoute) else f"{k}={v}" for k, v, default in given if v != default]
        return f"{self.name}({', '.join(arguments)})" if arguments else self.name


class Tables:
    """The gather and scatter tables of several routes over one grid, on one device."""

    def __init__(self, orders: list[Tensor], cells: int) -> None:
        self.orders = orders
        self.inverses = [inverse_of(order, cells) for order in orders]
        k = len(orders)
        self.complete = all(order.shape[0] == cells for order in orders)
        """Every route visits every cell."""
        if self.complete:
            route = torch.arange(k, device=orders[0].device)
            stacked, back = torch.stack(orders, 1), torch.stack(self.inverses, 1)
            self.gather = stacked.reshape(-1)
            """(L K): entry (t, k) is the cell that route k visits at t."""
            self.scatter = (back * k + route).reshape(-1)
            """(L K): entry (p, k) is where, in a (t, k) layout, route k visits cell p."""
            self.gather_own = (stacked * k + route).reshape(-1)
            """(L K): entry (t, k) is the place of that cell in a (p, k) layout."""


def inverse_of(order: Tensor, cells: int) -> Tensor:
    """The inverse table, by scatter: inverse[order[t]] = t, and -1 elsewhere."""
    inverse = torch.full((cells,), -1, dtype=torch.int64, device=order.device)
    return inverse.scatter(0, order, torch.arange(order.numel(), device=order.device))


def build(routes: Sequence[BaseRoute], space: tuple[int, ...], device: torch.device | str = "cpu") -> Tables:
    """The tables, uncached. Index tensors must be usable in a backward pass, so they are never made in inference mode."""
    with torch.inference_mode(False):
        return Tables([route.visit(space).to(device) for route in routes], math.prod(space))


@functools.lru_cache(maxsize=256)
def _cached(routes: tuple[BaseRoute, ...], space: tuple[int, ...], device: torch.device) -> Tables:
    return build(routes, space, device)


def tables(routes: Sequence[BaseRoute], space: Sequence[int], device: torch.device | str = "cpu") -> Tables:
    """The tables of these routes over a grid of this shape, cached.

    A tracing compiler (whose sizes are symbols) and modes that replace tensors (fake tensors, counters) must not fill the cache or be
    handed its entries.
    """
    if not space:
        raise ValueError("a route needs a grid of at least one axis; got space=()")
    symbols = any(isinstance(size, torch.SymInt) for size in space)
    if symbols or torch.compiler.is_compiling() or _get_current_dispatch_mode() is not None:
        return build(routes, tuple(space), device)
    if min(space) < 1:
        raise ValueError(f"a grid has at least one cell along every axis; got {tuple(space)}")
    return _cached(tuple(routes), tuple(space), torch.device(device))
