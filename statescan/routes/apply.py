"""Reordering tensors along routes and back: x is (B, *space, D), sequences are (B, L, D), or (B, L, K, D) for K routes at once.

``split`` and ``merge`` are each other's adjoint, and that is how they are differentiated: gathers in both directions, no scattered
additions, so the same bits at any number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from statescan.protocols import Route
from statescan.routes.base import BaseRoute, Tables, tables
from statescan.timeline import Timeline


class _Sum(torch.autograd.Function):
    """y[:, i] = sum over k of x[:, index[i, k]], and its adjoint x[:, j] = sum over m of y[:, adjoint[j, m]]."""

    @staticmethod
    def forward(x: Tensor, index: Tensor, adjoint: Tensor, k: int, m: int) -> Tensor:
        y = x.index_select(1, index)
        return y if k == 1 else y.unflatten(1, (-1, k)).sum(2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, index, adjoint, k, m = inputs
        ctx.save_for_backward(index, adjoint)
        ctx.sizes = (k, m)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        index, adjoint = ctx.saved_tensors
        k, m = ctx.sizes
        return _Sum.apply(grads[0], adjoint, index, m, k), None, None, None, None  # type: ignore[return-value]


def gather(x: Tensor, route: Route) -> Tensor:
    """(B, *space, D) -> (B, L', D): the cells in the order of one route."""
    order = route.order(x.shape[1:-1]).to(x.device)
    return x.flatten(1, -2).index_select(1, order)


def scatter(y: Tensor, route: Route, space: Sequence[int]) -> Tensor:
    """(B, L', D) -> (B, *space, D): back to the grid; zeros where the route does not pass."""
    inverse = route.inverse(space).to(y.device)
    x = y.index_select(1, inverse.clamp(min=0))
    passes = (inverse >= 0).unsqueeze(-1)
    return torch.where(passes, x, torch.zeros((), dtype=y.dtype, device=y.device)).unflatten(1, tuple(space))


def prepare(routes: Sequence[Route] | Tables, space: Sequence[int], device: torch.device) -> Tables:
    """The tables of routes that each visit every cell: what ``split`` and the others take instead of routes, to look them up once."""
    table = routes if isinstance(routes, Tables) else _tables(routes, space, device)
    if not table.complete:
        raise ValueError(f"every route must visit every cell of the grid {tuple(space)}; got {', '.join(map(str, routes))}")  # type: ignore[arg-type]
    return table


def split(x: Tensor, routes: Sequence[Route] | Tables) -> Tensor:
    """(B, *space, D) -> (B, L, K, D): entry (t, k) is the cell that route k visits at t."""
    table = prepare(routes, x.shape[1:-1], x.device)
    k = len(table.orders)
    return _Sum.apply(x.flatten(1, -2), table.gather, table.scatter, 1, k).unflatten(1, (-1, k))  # type: ignore[union-attr]


def merge(y: Tensor, routes: Sequence[Route] | Tables, space: Sequence[int]) -> Tensor:
    """(B, L, K, D) -> (B, *space, D): each route's sequence back on the grid, and their sum."""
    table = prepare(routes, space, y.device)
    k = len(table.orders)
    return _Sum.apply(y.flatten(1, 2), table.scatter, table.gather, k, 1).unflatten(1, tuple(space))  # type: ignore[union-attr]


def reorder(x: Tensor, routes: Sequence[Route] | Tables) -> Tensor:
    """(B, *space, K, D) -> (B, L, K, D): entry (t, k) is entry k of the cell that route k visits at t."""
    table = prepare(routes, x.shape[1:-2], x.device)
    k = len(table.orders)
    return _Sum.apply(x.flatten(1, -2), table.gather_own, table.scatter, 1, 1).unflatten(1, (-1, k))  # type: ignore[union-attr]


def timelines(routes: Sequence[Route], space: Sequence[int], device: torch.device | str = "cpu") -> list[Timeline | None]:
    """Where the sequence of each route begins anew, fields (1, L); None where it is one piece, or the route does not say."""
    lines = [route.timeline(space) if isinstance(route, BaseRoute) else None for route in routes]
    moved = [None if line is None else [f.to(device) if isinstance(f, Tensor) else f for f in line] for line in lines]
    return [None if fields is None else Timeline(*fields) for fields in moved]  # type: ignore[arg-type]


def _tables(routes: Sequence[Route], space: Sequence[int], device: torch.device) -> Tables:
    if all(isinstance(route, BaseRoute) for route in routes):
        return tables(routes, space, device)  # type: ignore[arg-type]
    return Tables([route.order(space).to(device) for route in routes], int(torch.Size(space).numel()))
