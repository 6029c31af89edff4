"""Saved activations chosen by cost: what is cheap to compute again is not kept for the backward pass, but computed again in it.

Short convolutions, norms and narrow products fill a good part of the memory of training and take a few per cent of its time. Inside
``with frugal(x):`` the calls that :func:`remember` hears of leave a recipe, and whatever later functions save of their results is packed as
that recipe. It runs once, when the backward pass first unpacks it, and its result is freed with the last function that saved it.
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
_current = threading.local()


class _Recipe:
    """A call, and its result once it has run again."""

    def __init__(self, function: Callable[..., Any], arguments: Mapping[str, Any], original: Tensor) -> None:
        self.function = function
        self.arguments = {name: value.detach() if isinstance(value, Tensor) else value for name, value in arguments.items()}
        self.versions = self._versions()
        self.original: Tensor | None = original  # until the layer has ended: else its memory might become another tensor's
        self.version, self.dtype = original._version, original.dtype
        self.result: Tensor | None = None

    def _versions(self) -> list[int]:
        return [value._version for value in self.arguments.values() if isinstance(value, Tensor)]

    def run(self) -> Tensor:
        if self.result is None:
            if self.versions != self._versions():
                raise RuntimeError(_MODIFIED)
            with torch.no_grad():
                self.result = _first(self.function(**self.arguments))
        return self.result


class _Packed(NamedTuple):
    recipe: _Recipe
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int | torch.SymInt


_MODIFIED = (
    "a tensor that the backward pass needs was modified in place after the forward pass (a weight by an optimiser's step, say): "
    "call backward before the change, or run the forward pass again"
)


def _first(result: Any) -> Tensor:
    return result[0] if isinstance(result, tuple) else result  # type: ignore[no-any-return]


def frugal(x: Tensor) -> AbstractContextManager[None]:
    """Keep recipes inside, if ``x`` is a large stream in training and nobody else decides what is saved (checkpointing, a compiler)."""
    useful = torch.is_grad_enabled() and x.numel() >= WORTHWHILE
    if not useful or not gate.plain(x) or torch.is_autocast_enabled(x.device.type):
        return nullcontext()
    if torch._C._functorch.peek_interpreter_stack() is not None or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
        return nullcontext()
    return _recipes()


@contextmanager
def _recipes() -> Iterator[None]:
    recipes: dict[int, _Recipe] = {}

    def pack(tensor: Tensor) -> _Packed | tuple[Tensor, int]:
        recipe = recipes.get(tensor.untyped_storage()._cdata) if tensor.layout == torch.strided else None
        if recipe is None or (tensor._version, tensor.dtype) != (recipe.version, recipe.dtype):
            return tensor, tensor._version
        return _Packed(recipe, tensor.shape, tensor.stride(), tensor.storage_offset())

    _current.recipes = recipes
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, _unpack):
            yield
    finally:
        _current.recipes = None
        for recipe in recipes.values():
            recipe.original = None


def _unpack(packed: _Packed | tuple[Tensor, int]) -> Tensor:
    if isinstance(packed, _Packed):
        return packed.recipe.run().as_strided(packed.shape, packed.stride, packed.offset)
    tensor, version = packed
    if tensor._version != version:
        raise RuntimeError(_MODIFIED)
    return tensor


def remember(function: Callable[..., Any], arguments: Mapping[str, Any], result: Any) -> None:
    """``result``, or its first tensor, is what ``function(**arguments)`` gives, and cheap."""
    recipes = getattr(_current, "recipes", None)
    if recipes is not None:
        original = _first(result)
        if gate.plain(original) and not original.is_complex():
            recipes[original.untyped_storage()._cdata] = _Recipe(function, arguments, original)
