"""The embedding's gradient: torch's values, in pages that do not exist where nothing was read."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import statescan as ss
from statescan.layers import Embedding, Linear
from statescan.ops import pages


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "LARGE", 1)


def both(rows: int = 50, width: int = 6, dtype: torch.dtype = torch.float32) -> tuple[Embedding, nn.Embedding]:
    ours, theirs = Embedding(rows, width, dtype=dtype), nn.Embedding(rows, width, dtype=dtype)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (2, 3, 4), (0,)])
def test_values_and_gradients(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    ids = torch.randint(0, 50, shape)
    ours, theirs = both(dtype=dtype)
    cotangent = torch.randn(*shape, 6, dtype=dtype)
    for layer in (ours, theirs):
        y = layer(ids)
        assert torch.equal(y, layer.weight[ids])
        y.backward(cotangent)
    assert ours.weight.grad is not None
    assert theirs.weight.grad is not None
    assert ours.weight.grad.dtype == dtype
    assert ours.weight.grad.is_contiguous()
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)


def test_ids_of_32_bits_and_a_cotangent_of_one_number() -> None:
    ours, theirs = both()
    ids = torch.tensor([[3, 3, 1]], dtype=torch.int32)
    ours(ids).sum().backward()
    theirs(ids).sum().backward()
    assert ours.weight.grad is not None
    assert torch.equal(ours.weight.grad, theirs.weight.grad)  # type: ignore[arg-type]


def test_second_derivatives() -> None:
    weight, ids = torch.randn(5, 3, dtype=torch.float64, requires_grad=True), torch.tensor([1, 4, 1])

    def cubes(weight: Tensor) -> Tensor:
        return torch.func.functional_call(Embedding(5, 3), {"weight": weight}, (ids,)) ** 3  # type: ignore[no-any-return]

    assert torch.autograd.gradgradcheck(cubes, (weight,))


def test_a_shared_weight() -> None:
    """The gradients of embedding and head are added, whichever is there."""
    ids = torch.randint(0, 64, (2, 9))
    ours, theirs = both(64, 40)
    found = []
    for embedding in (ours, theirs):
        head = Linear(40, 64, bias=False)
        head.weight = embedding.weight
        head(embedding(ids)).square().sum().backward()
        found.append(embedding.weight.grad)
    torch.testing.assert_close(*found)


def test_frozen_compiled_and_mapped() -> None:
    ours, theirs = both()
    ids = torch.randint(0, 50, (3, 4))
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    compiled(ids).sum().backward()
    theirs(ids).sum().backward()
    assert torch.equal(ours.weight.grad, theirs.weight.grad)  # type: ignore[arg-type]
    mapped = torch.func.grad(lambda weight: torch.func.functional_call(ours, {"weight": weight}, (ids,)).sum())(ours.weight)
    assert torch.equal(mapped, theirs.weight.grad)  # type: ignore[arg-type]
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(ours.weight.detach().requires_grad_(), torch.ones(50, 6))
        y = torch.func.functional_call(ours, {"weight": dual}, (ids,))
        assert torch.equal(torch.autograd.forward_ad.unpack_dual(y).tangent, torch.ones(3, 4, 6))
    ours.weight.requires_grad_(False)
    assert not ours(ids).requires_grad


def test_a_padding_index_is_torchs() -> None:
    ours = Embedding(9, 4, padding_idx=2)
    ours(torch.tensor([2, 3])).sum().backward()
    assert ours.weight.grad is not None
    assert ours.weight.grad.sum(1).tolist() == [0, 0, 0, 4, 0, 0, 0, 0, 0]


def resident() -> float:
    return next(int(line.split()[1]) / 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's figures of memory")
def test_memory_of_a_large_table() -> None:
    """A table of 80 MiB of which 20 rows are read: its gradient takes a few pages."""
    table = Embedding(40_000, 512)
    ids = torch.randint(0, 40_000, (1, 20))
    y = table(ids).sum()
    before = resident()
    y.backward()
    assert resident() - before < 10
    assert table.weight.grad is not None
    assert int((table.weight.grad != 0).any(1).sum()) == len(ids.unique())


def test_models_have_it() -> None:
    assert type(ss.create_model("mamba-130m", device="meta").backbone.embedding) is Embedding
