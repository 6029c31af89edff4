"""A typed factory as data: ``Spec[Mixer]`` names a registered class and fixes some of its arguments; the parent supplies the rest.

The constructor is the schema. An argument that the constructor does not have, or of the wrong type, is an error when the Spec is made
(with the nearest name), not when it is used. A Spec prints, compares, saves to plain data and builds::

    mixer = Spec("Mamba", d_state=32)          # or Spec(Mamba, d_state=32)
    layer = mixer(768)                         # Mamba(768, d_state=32)
    mixer.to_dict()                            # {"name": "Mamba", "d_state": 32, "d_conv": 4, ...}: every default written
"""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Literal, TypeVar, Union, get_args, get_origin

from statescan import registry

T = TypeVar("T")

_CONTEXT = ("device", "dtype")
"""Arguments that say where a module is built, not what it is: never part of a saved Spec."""


class Spec(Generic[T]):
    """See the module's docstring. Immutable; ``override`` returns a changed copy."""

    def __init__(self, target: str | type[T] | Spec[T], /, **arguments: Any) -> None:
        if isinstance(target, Spec):
            arguments = {**target.arguments, **arguments}
            target = target.name
        cls = registry.lookup(target) if isinstance(target, str) else target
        if registry.parts.get(cls.__name__) is not cls:
            raise ValueError(f"{cls!r} is not registered: put @statescan.register above the class")
        self.name: str = cls.__name__
        hints = hints_of(cls)
        self.arguments: dict[str, Any] = {}
        for key, value in arguments.items():
            if key not in hints:
                raise ValueError(f"{self.name} has no argument {key!r}{registry.nearest(key, hints)}")
            self.arguments[key] = check(value, hints[key], f"{self.name}.{key}")

    def __call__(self, *args: Any, **kwargs: Any) -> T:
        """Build. Positional arguments are the parent's (``d_model``); keywords override."""
        cls, arguments = registry.lookup(self.name), {**self.arguments, **kwargs}
        missing = [
            p.name
            for p in list(inspect.signature(cls).parameters.values())[len(args) :]
            if p.default is p.empty and p.name not in arguments
        ]
        if missing:
            raise ValueError(f"{self.name} needs {', '.join(missing)}: for example Spec({self.name!r}, {missing[0]}=...)")
        return cls(*args, **arguments)

    def override(self, changes: Mapping[str, Any]) -> Spec[T]:
        """A copy with arguments changed, by name or dotted path (``{"mixer.d_state": 32}``); paths go through Specs and dictionaries."""
        arguments = dict(self.arguments)
        hints = hints_of(registry.lookup(self.name))
        for path, value in changes.items():
            head, _, rest = path.partition(".")
            if head == "name" and not rest:
                raise ValueError("the name of a Spec cannot be overridden: give a new Spec, for example parts.M={name: Mamba2}")
            if head not in hints:
                raise ValueError(f"{self.name} has no argument {head!r}{registry.nearest(head, hints)}")
            if rest:
                current = arguments.get(head, defaults(registry.lookup(self.name)).get(head))
                value = _override_inside(current, rest, value, f"{self.name}.{head}")
            arguments[head] = value
        return Spec(self.name, **arguments)

    def resolved(self) -> Spec[T]:
        """The same Spec with every default written out, all the way down."""
        filled = {**defaults(registry.lookup(self.name)), **self.arguments}
        return Spec(self.name, **{k: _resolve(v) for k, v in filled.items() if k not in _CONTEXT})

    def to_dict(self) -> dict[str, Any]:
        """Plain data (JSON, YAML), fully resolved: ``{"name": ..., argument: value, ...}``."""
        return {"name": self.name, **{k: _plain(v, f"{self.name}.{k}") for k, v in self.resolved().arguments.items()}}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Spec[Any]:
        """The inverse of :meth:`to_dict`; only registered names are ever built."""
        if not isinstance(data, Mapping) or not isinstance(data.get("name"), str):
            raise ValueError(f"expected a mapping with a 'name', for example {{name: Mamba, d_state: 16}}; got {data!r}")
        return Spec(data["name"], **{k: v for k, v in data.items() if k != "name"})

    @staticmethod
    def of(module: Any) -> Spec[Any]:
        """The Spec that builds a module like this one: its class and the arguments it was made with."""
        if isinstance(module, Spec):
            return module
        cls = type(module)
        if registry.parts.get(cls.__name__) is not cls:
            raise ValueError(f"{cls.__name__} is not registered, so it cannot be saved: put @statescan.register above the class")
        return Spec(cls, **{k: v for k, v in module._arguments.items() if k not in _CONTEXT})

    def __repr__(self) -> str:
        return f"Spec({self.name}{''.join(f', {k}={v!r}' for k, v in self.arguments.items())})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Spec) or self.name != other.name:
            return False
        return self.arguments == other.arguments or self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(repr(self.to_dict()))


@functools.cache
def hints_of(cls: type) -> dict[str, Any]:
    """Argument name -> type of a class's constructor."""
    hints = typing.get_type_hints(inspect.unwrap(cls.__init__))  # type: ignore[misc]
    return {name: hints.get(name, Any) for name in inspect.signature(cls).parameters}


@functools.cache
def _defaults(cls: type) -> tuple[tuple[str, Any], ...]:
    parameters = inspect.signature(cls).parameters.values()
    return tuple((p.name, p.default) for p in parameters if p.default is not p.empty)


def defaults(cls: type) -> dict[str, Any]:
    """Argument name -> default, of those that have one."""
    return dict(_defaults(cls))


def check_choices(cls: type, arguments: Mapping[str, Any]) -> None:
    """A ValueError if an argument that must be one of a few words is another one: for direct calls, which no Spec has checked."""
    for name, hint in hints_of(cls).items():
        if name in arguments and _has_choices(hint):
            check(arguments[name], hint, f"{cls.__name__}.{name}")


registry.argument_checks.append(check_choices)


def _has_choices(hint: Any) -> bool:
    return get_origin(hint) is Literal or any(_has_choices(option) for option in get_args(hint) if not is_factory(hint))


def is_factory(hint: Any) -> bool:
    """Whether an annotation asks for a part: ``Callable[..., X]``, ``Spec[X]``, or a union with one."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(is_factory(option) for option in get_args(hint))
    return hint is Spec or origin is Spec or hint is Callable or origin is Callable


def check(value: Any, hint: Any, where: str) -> Any:
    """The value, converted where that is harmless (int to float, list to tuple, name or mapping to Spec); a ValueError otherwise."""
    origin, options = get_origin(hint), get_args(hint)
    if hint is Any or isinstance(hint, TypeVar):
        return value
    if origin in (Union, types.UnionType):
        errors = []
        # An exact match wins over a conversion: 4 stays an int for "int | float", "auto" a string for "str | Callable".
        for option in sorted(options, key=lambda o: not (isinstance(o, type) and type(value) is o)):
            try:
                return check(value, option, where)
            except ValueError as error:
                errors.append(error)
        inside = [error for error in errors if not str(error).startswith(f"{where} must ")]  # of a part or an entry: says more
        raise inside[0] if inside else ValueError(f"{where} must be {describe(hint)}; got {value!r}")
    if is_factory(hint):
        return _as_spec(value, where)
    if origin is Literal:
        if value in options and type(value) in {type(o) for o in options}:
            return value
        hintful = registry.nearest(str(value), [str(o) for o in options])
        raise ValueError(f"{where} must be one of {', '.join(map(repr, options))}; got {value!r}{hintful if 'mean' in hintful else ''}")
    if hint in (None, type(None)):
        ok = value is None
    elif hint is float:
        ok = isinstance(value, (int, float)) and not isinstance(value, bool)
        value = float(value) if ok else value
    elif hint is int:
        ok = isinstance(value, int) and not isinstance(value, bool)
    elif origin is tuple or (hint is tuple):
        ok = isinstance(value, Sequence) and not isinstance(value, str)
        if ok and options:
            inner = options[:1] * len(value) if options[-1] is Ellipsis else options
            if len(inner) != len(value):
                raise ValueError(f"{where} must be {describe(hint)}; got {value!r}")
            value = tuple(check(v, h, f"{where}[{i}]") for i, (v, h) in enumerate(zip(value, inner, strict=True)))
    elif origin in (list, Sequence) or getattr(origin, "__name__", "") == "Sequence":
        ok = isinstance(value, Sequence) and not isinstance(value, str)
        value = [check(v, options[0], f"{where}[{i}]") for i, v in enumerate(value)] if ok else value
    elif origin in (dict, Mapping) or getattr(origin, "__name__", "") == "Mapping":
        ok = isinstance(value, Mapping)
        value = {k: check(v, options[1], f"{where}.{k}") for k, v in value.items()} if ok else value
    elif isinstance(hint, type):
        ok = isinstance(value, hint)
    else:
        return value
    if not ok:
        raise ValueError(f"{where} must be {describe(hint)}; got {value!r}")
    return value


def describe(hint: Any) -> str:
    """An annotation as a person would write it."""
    if hint in (None, type(None)):
        return "None"
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(describe(option) for option in get_args(hint))
    if is_factory(hint):
        return "the name of a registered part or {name: ..., arguments}"
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, get_args(hint)))
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint).replace("typing.", "")


def _as_spec(value: Any, where: str) -> Any:
    if isinstance(value, Spec):
        return value
    if isinstance(value, str):
        return Spec(value)
    if isinstance(value, Mapping):
        return Spec.from_dict(value)
    if isinstance(value, functools.partial) and isinstance(value.func, type) and not value.args:
        return Spec(value.func, **value.keywords)
    if isinstance(value, type) and registry.parts.get(value.__name__) is value:
        return Spec(value)
    if callable(value):
        return value  # a factory in code: it builds, but cannot be saved
    raise ValueError(f"{where} must name a registered part (for example 'Mamba' or {{name: Mamba, d_state: 32}}); got {value!r}")


def _override_inside(current: Any, path: str, value: Any, where: str) -> Any:
    if isinstance(current, type) and registry.parts.get(current.__name__) is current:
        current = Spec(current)
    if isinstance(current, str) and current in registry.parts:
        current = Spec(current)
    if isinstance(current, Spec):
        return current.override({path: value})
    if isinstance(current, Mapping):
        head, _, rest = path.partition(".")
        if rest and head not in current:
            raise ValueError(f"{where} has no entry {head!r}{registry.nearest(head, current)}")
        return {**current, head: _override_inside(current[head], rest, value, f"{where}.{head}") if rest else value}
    raise ValueError(f"{where} is {current!r}, which has no part {path!r}")


def _resolve(value: Any) -> Any:
    if isinstance(value, Spec):
        return value.resolved()
    if isinstance(value, type) and registry.parts.get(value.__name__) is value:
        return Spec(value).resolved()
    if isinstance(value, Mapping):
        return {k: _resolve(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_resolve(v) for v in value)
    return value


def _plain(value: Any, where: str) -> Any:
    if isinstance(value, Spec):
        return value.to_dict()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {k: _plain(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v, f"{where}[{i}]") for i, v in enumerate(value)]
    raise ValueError(f"{where} is {value!r}, which cannot be saved: use a Spec of a registered class")
