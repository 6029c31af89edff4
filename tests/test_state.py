"""What one does with a state: rows, joins, files."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from statescan import state as states
from statescan.files import write_safetensors


@states.state
class Inner(NamedTuple):
    h: Tensor
    count: Tensor


@states.state
class Outer(NamedTuple):
    layers: tuple[Inner | tuple[()], ...]
    tail: Tensor | None


def make(batch: int = 3, seed: int = 0) -> Outer:
    generator = torch.Generator().manual_seed(seed)
    inner = Inner(torch.randn(batch, 2, 4, generator=generator), torch.arange(batch) + seed)
    return Outer((inner, (), inner), torch.randn(batch, 1, generator=generator))


def same(a: object, b: object) -> bool:
    leaves_a, leaves_b = pytree.tree_leaves(a), pytree.tree_leaves(b)
    return pytree.tree_structure(a) == pytree.tree_structure(b) and all(map(torch.equal, leaves_a, leaves_b))


def test_select_takes_rows_in_order() -> None:
    tree = make()
    picked = states.select(tree, [2, 0, 2])
    assert torch.equal(picked.tail, tree.tail[[2, 0, 2]])  # type: ignore[index,arg-type]
    assert picked.layers[0].count.tolist() == [2, 0, 2]  # type: ignore[union-attr]
    assert same(states.select(tree, torch.tensor([True, False, True])), states.select(tree, [0, 2]))
    assert same(states.select(tree, torch.tensor([1])), states.select(tree, [1]))


def test_concat_undoes_select() -> None:
    tree = make()
    assert same(states.concat([states.select(tree, [i]) for i in range(3)]), tree)
    assert states.stack([tree, tree]).tail.shape == (2, 3, 1)  # type: ignore[union-attr]


def test_where_chooses_row_by_row() -> None:
    a, b = make(seed=0), make(seed=1)
    mixed = states.where(torch.tensor([True, False, True]), a, b)
    assert same(states.select(mixed, [0, 2]), states.select(a, [0, 2]))
    assert same(states.select(mixed, [1]), states.select(b, [1]))


def test_copies_and_conversions() -> None:
    tree = make()
    tree = tree._replace(tail=tree.tail.requires_grad_() * 2)  # type: ignore[union-attr]
    assert not states.detach(tree).tail.requires_grad  # type: ignore[union-attr]
    assert states.clone(tree).tail.data_ptr() != tree.tail.data_ptr()
    half = states.to(tree, dtype=torch.bfloat16)
    assert half.tail.dtype == torch.bfloat16  # type: ignore[union-attr]
    assert half.layers[0].count.dtype == torch.int64  # type: ignore[union-attr]
    assert states.nbytes(tree) == 3 * (2 * (8 * 4 + 8) + 4)
    assert states.nbytes(tree, per_sequence=True) == 2 * (8 * 4 + 8) + 4
    assert states.nbytes(()) == states.nbytes((), per_sequence=True) == 0


def test_saved_and_loaded(tmp_path: Path) -> None:
    for i, tree in enumerate([make(), make()._replace(tail=None), (make(), ()), Outer((), torch.zeros(2, 0, 3))]):
        states.save(tree, tmp_path / f"{i}.safetensors")
        loaded = states.load(tmp_path / f"{i}.safetensors")
        assert type(loaded) is type(tree)
        assert pytree.tree_structure(loaded) == pytree.tree_structure(tree)
        assert all(a is b is None or torch.equal(a, b) for a, b in zip(pytree.tree_leaves(loaded), pytree.tree_leaves(tree), strict=True))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_weights_only_loads_may_hold_a_state(tmp_path: Path) -> None:
    torch.save(make(), tmp_path / "state.pt")
    assert same(torch.load(tmp_path / "state.pt", weights_only=True), make())


def test_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        states.load(tmp_path / "none.safetensors")
    write_safetensors(tmp_path / "weights.safetensors", {"w": torch.ones(2)})
    with pytest.raises(ValueError, match="not a saved state"):
        states.load(tmp_path / "weights.safetensors")
    states.save(make(), tmp_path / "cut.safetensors")
    whole = (tmp_path / "cut.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        states.load(tmp_path / "cut.safetensors")
    write_safetensors(
        tmp_path / "foreign.safetensors", {}, {"format": "statescan-state", "structure": '{"class": "Unheard", "children": []}'}
    )
    with pytest.raises(ValueError, match="'Unheard'"):
        states.load(tmp_path / "foreign.safetensors")


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="no states"):
        states.concat([])
    with pytest.raises(ValueError, match="different models"):
        states.concat([make(), make()._replace(tail=None)])
    with pytest.raises(TypeError, match="NamedTuple"):
        states.state(int)
    with pytest.raises(TypeError, match="holds tensors"):
        states.save(Outer((), 3), "unused.safetensors")  # type: ignore[arg-type]


def test_a_taken_name_is_refused() -> None:
    class Elsewhere(NamedTuple):
        h: Tensor

    Elsewhere.__name__, Elsewhere.__module__ = "Inner", "somewhere.else"
    with pytest.raises(ValueError, match="choose another name"):
        states.state(Elsewhere)
