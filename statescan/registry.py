"""Name -> class or model; filled by ``@register`` on classes and by ``register_model``."""

from __future__ import annotations

import difflib
import fnmatch
import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from statescan.spec import Spec

C = TypeVar("C", bound=type)

parts: dict[str, type] = {}
"""Every registered class: mixers, layers, backbones, heads, models."""
models: dict[str, ModelEntry] = {}
"""Every registered model, by the name one gives to ``create_model``."""


argument_checks: list[Callable[[type, dict[str, Any]], None]] = []
"""Run on the arguments of every registered constructor; ``statescan.spec``, which reads types, adds one."""


def register(cls: C) -> C:
    """Make a class available by name to Specs, configuration files and the command line, and let its instances know their arguments."""
    name = cls.__name__
    if name in parts and parts[name].__module__ != cls.__module__:
        raise ValueError(f"{name!r} is registered already, by {parts[name].__module__}: choose another class name")
    signature = inspect.signature(cls)
    for parameter in signature.parameters.values():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) or parameter.name == "name":
            raise TypeError(f"{name}.__init__ may not take {parameter}: a registered constructor is a configuration schema")
    parts[name] = cls
    original = cls.__init__  # type: ignore[misc]

    @functools.wraps(original)
    def remember(self: Any, *args: Any, **kwargs: Any) -> None:
        if type(self) is cls:
            arguments = signature.bind(*args, **kwargs).arguments
            for check in argument_checks:
                check(cls, arguments)
            object.__setattr__(self, "_arguments", arguments)
        original(self, *args, **kwargs)

    cls.__init__ = remember  # type: ignore[misc]
    return cls


def lookup(name: str) -> type:
    """The class registered under a name."""
    if name not in parts:
        raise ValueError(f"nothing is registered under {name!r}{nearest(name, parts)}")
    return parts[name]


def nearest(name: str, names: Iterable[str]) -> str:
    """``; did you mean 'x'?`` or the names there are: the end of an error message about a wrong name."""
    names = sorted(names)
    folded = {other.lower(): other for other in names}
    close = difflib.get_close_matches(name.lower(), list(folded), n=1, cutoff=0.6)
    if close:
        return f"; did you mean {folded[close[0]]!r}?"
    return f"; there are: {', '.join(names) if len(names) <= 24 else ', '.join(names[:24]) + ', ...'}"


@dataclass(frozen=True)
class Family:
    """A published system: what its models share."""

    name: str
    title: str
    url: str
    bibtex: str
    exact: str = ""
    """What equals the publication, in a sentence for the catalogue."""
    deviates: str = ""
    """What does not, and why."""
    introduces: tuple[str, ...] = ()
    """Names of the mixers that came with it: who uses one cites this."""


@dataclass(frozen=True)
class ModelEntry:
    """A model one can create by name."""

    name: str
    spec: Spec[Any]
    family: Family | None = None
    parameters: int | None = None
    """The published or counted number of parameters: a test builds the model on the meta device and compares."""
    tiny: bool = False
    """A small variant for tests: the laws run on it; hidden from ``list_models`` unless asked for."""
    options: dict[str, Any] = field(default_factory=dict)
    """What else a recipe declares about this entry (input size of a vision model, and so on)."""


def register_model(
    name: str,
    spec: Spec[Any],
    *,
    family: Family | None = None,
    parameters: int | None = None,
    tiny: bool = False,
    **options: Any,
) -> ModelEntry:
    """Register a model under a name: ``register_model("my-model", Spec(LanguageModel, d_model=256, ...))``."""
    if name in models:
        raise ValueError(f"a model named {name!r} is registered already")
    models[name] = ModelEntry(name, spec, family, parameters, tiny, options)
    return models[name]


def find_model(name: str) -> ModelEntry:
    """The entry of a model name; a wrong name is a ValueError that suggests the nearest."""
    if name not in models:
        raise ValueError(f"there is no model named {name!r}{nearest(name, models)}; see `statescan models`")
    return models[name]


def list_models(pattern: str = "*", *, family: str | None = None, tiny: bool = False) -> list[str]:
    """Names of registered models, in natural order: ``list_models("mamba2*")``."""

    def natural(name: str) -> list[tuple[int, float, str]]:
        import re

        pieces = re.findall(r"[0-9]+\.?[0-9]*|[^0-9]+", name)
        return [(0, float(p.rstrip(".")), "") if p[0].isdigit() else (1, 0.0, p) for p in pieces]

    chosen = [
        e.name
        for e in models.values()
        if fnmatch.fnmatch(e.name, pattern) and e.tiny <= tiny and (family is None or (e.family is not None and e.family.name == family))
    ]
    return sorted(chosen, key=natural)


def create_model(name: str, *, device: Any = None, dtype: Any = None, **overrides: Any) -> Any:
    """Build a registered model with fresh weights.

    Overrides change constructor arguments, by name or by dotted path: ``create_model("mamba-130m", n_layer=2,
    **{"mixer.d_state": 32})``. ``device="meta"`` builds without memory.
    """
    import contextlib

    import torch

    spec = find_model(name).spec.override(overrides)
    with torch.device(device) if device is not None else contextlib.nullcontext():
        model = spec()
    return model if dtype is None else model.to(dtype)
