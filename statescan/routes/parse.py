"""Routes from text: ``row``, ``col``, ``snake(axis=0)``, ``reverse(transpose(snake))``."""

from __future__ import annotations

import ast
import inspect
import typing

from statescan.protocols import Route
from statescan.registry import nearest
from statescan.routes.base import BaseRoute
from statescan.routes.grid import Atrous, Column, Mirror, Reverse, Row, Snake, Transpose
from statescan.spec import check

routes: dict[str, type[BaseRoute]] = {cls.name: cls for cls in (Row, Column, Snake, Atrous, Reverse, Transpose, Mirror)}
"""Name -> class of every route that text can name. A route of your own joins by ``routes[MyRoute.name] = MyRoute``."""


def parse_route(text: str | Route) -> Route:
    """The route a text names; a Route is returned as it is. A wrong name or argument is a ValueError with the nearest right one."""
    if not isinstance(text, str):
        if not isinstance(text, Route):
            raise ValueError(f"a route is text such as 'reverse(col)' or an object with order and inverse; got {text!r}")
        return text
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"{text!r} is not a route: write for example 'row', 'snake(axis=0)' or 'reverse(col)'") from error
    return _build(node, text)


def _build(node: ast.expr, text: str) -> BaseRoute:
    call = node if isinstance(node, ast.Call) else None
    head = node if call is None else call.func
    if not isinstance(head, ast.Name):
        raise ValueError(f"{text!r} is not a route: write for example 'row', 'snake(axis=0)' or 'reverse(col)'")
    if head.id not in routes:
        raise ValueError(f"there is no route {head.id!r}{nearest(head.id, routes)}")
    cls = routes[head.id]
    signature = inspect.signature(cls)
    keywords = {} if call is None else {str(k.arg): _value(k.value, text) for k in call.keywords}
    for name in keywords:
        if name not in signature.parameters:
            raise ValueError(f"route {head.id!r} has no argument {name!r}{nearest(name, signature.parameters)}")
    try:
        given = signature.bind(*([] if call is None else [_value(a, text) for a in call.args]), **keywords).arguments
    except TypeError as error:
        raise ValueError(f"{text!r}: {head.id}{signature.replace(return_annotation=signature.empty)}: {error}") from error
    hints = typing.get_type_hints(cls)
    return cls(**{name: check(value, hints[name], f"{head.id}.{name}") for name, value in given.items()})


def _value(node: ast.expr, text: str) -> object:
    if isinstance(node, (ast.Name, ast.Call)):
        return _build(node, text)
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise ValueError(f"{text!r}: arguments of a route are numbers, True, False or routes") from error
