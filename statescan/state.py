"""What a causal layer remembers: named tuples of tensors (or of such tuples), batch first, and the few things one does with them.

A state is declared once::

    @state
    class MambaState(NamedTuple):
        conv: Tensor   # (B, K-1, E) the last existing inputs of the short convolution
        ssm: Tensor    # (B, E, N) float32

The decorator registers the class with torch's pytree (so that ``torch.export`` can carry it) and by name (so that it can be loaded).
A state is never changed in place.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

State = Any
"""A NamedTuple declared with :func:`state`; a tuple of States is a State too; so is the empty tuple (a layer without memory)."""

S = TypeVar("S")
C = TypeVar("C", bound=type)

_classes: dict[str, type] = {}


def state(cls: C) -> C:
    """Declare a NamedTuple class as a State."""
    name = cls.__name__
    if not (issubclass(cls, tuple) and hasattr(cls, "_fields")):
        raise TypeError(f"@state expects a NamedTuple class, got {cls!r}")
    if name in _classes and _classes[name].__module__ != cls.__module__:
        raise ValueError(f"a State named {name!r} exists already, in {_classes[name].__module__}: choose another name")
    _classes[name] = cls
    pytree._register_namedtuple(cls, serialized_type_name=f"{cls.__module__}.{name}")
    torch.serialization.add_safe_globals([cls])  # so that weights-only loads, and exported programs, may hold one
    return cls


def tensors(tree: State) -> list[Tensor]:
    """Every tensor of a state, in order."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def map_tensors(fn: Callable[..., Tensor], tree: S, *others: S) -> S:
    """Apply ``fn`` to every tensor (and to the matching ones of ``others``); the structure stays."""
    return pytree.tree_map(lambda leaf, *rest: fn(leaf, *rest) if isinstance(leaf, Tensor) else leaf, tree, *others)


def select(tree: S, rows: Tensor | Sequence[int]) -> S:
    """Rows of the batch, in the order given: reorder (beam search), drop finished rows, or repeat one row."""

    def pick(tensor: Tensor) -> Tensor:
        index = torch.as_tensor(rows, device=tensor.device)
        if index.dtype == torch.bool:
            return tensor[index]
        return tensor.index_select(0, index.to(torch.long).reshape(-1))

    return map_tensors(pick, tree)


def concat(trees: Sequence[S]) -> S:
    """Join the batches of several states of the same kind."""
    first = _same_structure(trees)
    return map_tensors(lambda *leaves: torch.cat(leaves, dim=0), first, *trees[1:])


def stack(trees: Sequence[S]) -> S:
    """Stack states on a new leading axis (one entry a time step, say)."""
    first = _same_structure(trees)
    return map_tensors(lambda *leaves: torch.stack(leaves, dim=0), first, *trees[1:])


def where(rows: Tensor, yes: S, no: S) -> S:
    """Row by row: ``yes`` where ``rows`` (bool, (B,)) is true, else ``no``."""
    return map_tensors(lambda a, b: torch.where(rows.view(-1, *[1] * (a.ndim - 1)), a, b), yes, no)


def detach(tree: S) -> S:
    """The same values cut off from the graph: truncated back-propagation through time."""
    return map_tensors(Tensor.detach, tree)


def clone(tree: S) -> S:
    """An independent copy."""
    return map_tensors(Tensor.clone, tree)


def to(tree: S, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> S:
    """Move (and convert the floating-point tensors of) a state."""
    return map_tensors(lambda t: t.to(device=device, dtype=dtype if t.is_floating_point() else None), tree)


def trim(tree: S) -> S:
    """Without what no row can see any more: a growing cache loses its oldest entries, by its own method ``trim``."""
    if hasattr(tree, "trim"):
        return tree.trim()
    if not isinstance(tree, tuple):
        return tree
    children = [trim(child) for child in tree]
    return type(tree)(*children) if hasattr(tree, "_fields") else tuple(children)  # type: ignore[return-value]


def nbytes(tree: State, per_sequence: bool = False) -> int:
    """Bytes held; with ``per_sequence``, divided by the batch size."""
    leaves = tensors(tree)
    total = sum(t.numel() * t.element_size() for t in leaves)
    return total // leaves[0].shape[0] if per_sequence and leaves else total


def save(tree: State, path: str | os.PathLike[str]) -> None:
    """Write a state as safetensors, atomically; the structure goes into the file's metadata."""
    from statescan.files import write_safetensors

    flat: dict[str, Tensor] = {}
    structure = _describe(tree, "state", flat)
    write_safetensors(path, flat, {"format": "statescan-state", "structure": json.dumps(structure)})


def load(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> State:
    """Read what :func:`save` wrote; only declared State classes are ever built."""
    from statescan.files import read_safetensors

    flat, metadata = read_safetensors(path, device)
    if metadata.get("format") != "statescan-state":
        raise ValueError(f"{Path(path)} is a safetensors file but not a saved state: write one with statescan.state.save")
    return _build(json.loads(metadata["structure"]), flat, Path(path))


def _same_structure(trees: Sequence[S]) -> S:
    if not trees:
        raise ValueError("got no states: expected at least one")
    # None is a leaf to pytree, so whether a leaf is a tensor belongs to the structure
    specs = [(pytree.tree_structure(tree), [isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(tree)]) for tree in trees]
    if any(spec != specs[0] for spec in specs[1:]):
        raise ValueError("the states come from different models: their structures differ")
    return trees[0]


def _describe(tree: State, path: str, flat: dict[str, Tensor]) -> Any:
    if tree is None:
        return None
    if isinstance(tree, Tensor):
        flat[path] = tree.detach().clone()  # layers may share memory, which the format refuses
        return path
    if isinstance(tree, tuple):
        names = getattr(tree, "_fields", None) or [str(i) for i in range(len(tree))]
        children = [_describe(child, f"{path}.{name}", flat) for name, child in zip(names, tree, strict=True)]
        return {"class": type(tree).__name__ if hasattr(tree, "_fields") else "tuple", "children": children}
    raise TypeError(f"{path} is a {type(tree).__name__}: a state holds tensors and named tuples of tensors only")


def _build(node: Any, flat: dict[str, Tensor], path: Path) -> State:
    if node is None:
        return None
    if isinstance(node, str):
        return flat[node]
    children = [_build(child, flat, path) for child in node["children"]]
    if node["class"] == "tuple":
        return tuple(children)
    if node["class"] not in _classes:
        raise ValueError(f"{path} holds a state of class {node['class']!r}, which nothing here declares: import the module that does")
    return _classes[node["class"]](*children)
