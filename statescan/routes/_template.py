"""Copy me: a route in one method. Here: anti-diagonals in turn, each from its upper end.

Add the class to ``routes`` in ``parse.py`` and its name to ``FULL`` in ``tests/routes/test_routes.py``: the laws then run on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from statescan.routes.base import BaseRoute
from statescan.routes.grid import cells


@dataclass(frozen=True)
class Template(BaseRoute):
    """What the route visits, in words and as a formula: by i + j ascending, then by i ascending.

    Fields of the dataclass are the route's arguments in text, ``template(field=...)``; give each a type and a default.
    """

    name: ClassVar[str] = "template"

    def visit(self, space: tuple[int, ...]) -> Tensor:
        if len(space) != 2:
            raise ValueError(f"{self} expects a grid of two axes; got a grid of shape {space}")
        cell = cells(space)
        i, j = cell // space[1], cell % space[1]
        return ((i + j) * space[0] + i).reshape(-1).argsort()
