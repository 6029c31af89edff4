"""Saved activations chosen by cost: what is cheap to compute again is not kept for the backward pass, but computed again in it.

Short convolutions, norms, narrow products and the chunked scan fill most of the memory of training and take little of its time. Inside
``with frugal(x):`` the calls that :func:`remember` hears of leave a recipe, and whatever later functions save of their results is packed as
that recipe. It runs once, when the backward pass first unpacks it, and its results are freed with the last function that saved them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from statescan.ops import native_gate as gate

WORTHWHILE = 2**16
"""Elements of the stream below which bookkeeping would cost more than the memory is worth."""
_MODIFIED = (
    "a tensor that the backward pass needs was modified in place after the forward pass (a weight by an optimiser's step, say): "
    "call backward before the change, or run the forward pass again"
)
_current = threading.local()


class _Recipe:
    """A call, and its results once it has run again."""

    def __init__(self, function: Callable[..., Any], arguments: Mapping[str, Any], originals: tuple[Tensor, ...], known: _Known) -> None:
        self.function = function
        self.arguments = {name: _pack(value.detach(), known) if isinstance(value, Tensor) else value for name, value in arguments.items()}
        self.originals = originals  # until the layer has ended: else their memory might become another tensor's
        self.outputs = [(tensor._version, tensor.dtype) for tensor in originals]
        self.results: tuple[Tensor, ...] | None = None

    def run(self) -> tuple[Tensor, ...]:
        if self.results is None:
            arguments = {name: _unpack(value) if isinstance(value, _Again | _AsItIs) else value for name, value in self.arguments.items()}
            with torch.no_grad():
                self.results = _several(self.function(**arguments))
        return self.results


_Known = dict[int, tuple[_Recipe, int]]
"""Storage -> the call that gives it, and which of its results it is."""


class _AsItIs(NamedTuple):
    tensor: Tensor
    version: int


class _Again(NamedTuple):
    """A view of a result."""

    recipe: _Recipe
    place: int
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int | torch.SymInt


def _pack(tensor: Tensor, known: _Known) -> _Again | _AsItIs:
    found = known.get(tensor.untyped_storage()._cdata) if tensor.layout == torch.strided else None
    if found is None or (tensor._version, tensor.dtype) != found[0].outputs[found[1]]:
        return _AsItIs(tensor, tensor._version)
    return _Again(*found, tensor.shape, tensor.stride(), tensor.storage_offset())


def _unpack(packed: _Again | _AsItIs) -> Tensor:
    if isinstance(packed, _Again):
        return packed.recipe.run()[packed.place].as_strided(packed.shape, packed.stride, packed.offset)
    if packed.tensor._version != packed.version:
        raise RuntimeError(_MODIFIED)
    return packed.tensor


def _several(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def frugal(x: Tensor) -> AbstractContextManager[None]:
    """Keep recipes inside, if ``x`` is a large stream in training and nobody else decides what is saved (checkpointing, a compiler)."""
    if not (torch.is_grad_enabled() and x.numel() >= WORTHWHILE and gate.plain(x)) or gate.transformed():
        return nullcontext()
    autocast = torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type)  # the meta device knows none
    if autocast or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
        return nullcontext()
    return _recipes()


@contextmanager
def _recipes() -> Iterator[None]:
    known: _Known = {}
    _current.known = known
    try:
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: _pack(tensor, known), _unpack):
            yield
    finally:
        _current.known = None
        for recipe, _ in known.values():
            recipe.originals = ()


def remember(function: Callable[..., Any], arguments: Mapping[str, Any], result: Any) -> None:
    """``result``, a tensor or several, is what ``function(**arguments)`` gives, and cheap."""
    known, originals = getattr(_current, "known", None), _several(result)
    if known is not None and gate.plain(*originals) and not any(tensor.is_complex() for tensor in originals):
        recipe = _Recipe(function, arguments, originals, known)
        known.update({tensor.untyped_storage()._cdata: (recipe, place) for place, tensor in enumerate(originals)})
