"""Only reorders positions of N-dimensional data, and can undo it."""

from statescan.routes.apply import gather, merge, prepare, reorder, scatter, split, timelines
from statescan.routes.base import BaseRoute
from statescan.routes.grid import Atrous, Column, Mirror, Reverse, Row, Snake, Transpose
from statescan.routes.parse import parse_route, routes

__all__ = [
    "Atrous",
    "BaseRoute",
    "Column",
    "Mirror",
    "Reverse",
    "Row",
    "Snake",
    "Transpose",
    "gather",
    "merge",
    "parse_route",
    "prepare",
    "reorder",
    "routes",
    "scatter",
    "split",
    "timelines",
]
