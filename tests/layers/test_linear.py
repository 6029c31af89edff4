"""The products of a Linear by our own kernel: values, gradients by name, and what they leave to torch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import statescan as ss
from statescan.layers import Linear
from statescan.ops import native_gate as gate
from statescan.ops import products

onednn = products.onednn

pytestmark = [
    pytest.mark.native,
    pytest.mark.skipif(gate.module is None, reason=str(gate.unavailable)),
]


@pytest.fixture(autouse=True)
def ours(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """On any processor, from a size that a test can afford; the shapes of what was multiplied."""
    calls: list[tuple[int, ...]] = []
    multiply = products.multiply

    def spied(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
        calls.append((*a.shape, b.shape[1]))
        return multiply(a, b, bias)

    monkeypatch.setattr(products, "ours_is_faster", lambda: True)
    monkeypatch.setattr(products, "few_is_faster", lambda: True)
    monkeypatch.setattr(products, "onednn", None)
    monkeypatch.setattr(products, "NARROW", 1)
    monkeypatch.setattr(products, "FEW", 1)
    monkeypatch.setattr(products, "FEW_ENOUGH", {})
    monkeypatch.setattr(products, "multiply", spied)
    return calls


def leaves(rows: tuple[int, ...], width: int, out: int, bias: bool) -> dict[str, Tensor]:
    made = {"x": torch.randn(*rows, width), "weight": torch.randn(out, width)}
    return {**made, "bias": torch.randn(out)} if bias else made


def results(function: Any, inputs: dict[str, Tensor], gy: Tensor | None = None) -> dict[str, Tensor]:
    near = {k: v.detach().requires_grad_() for k, v in inputs.items()}
    y = function(**near)
    given = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)) if gy is None else gy
    y.backward(given.to(y.dtype))
    return {"y": y.detach(), **{k: v.grad for k, v in near.items() if v.grad is not None}}


def assert_exact(got: dict[str, Tensor], inputs: dict[str, Tensor], gy: Tensor | None = None) -> None:
    exact = results(F.linear, {k: v.double() for k, v in inputs.items()}, gy)
    assert set(got) == set(exact)
    for name, value in exact.items():
        assert got[name].shape == value.shape
        error = float((got[name] - value).abs().max() / value.abs().max().clamp(min=1e-3))
        assert error < 3e-6, (name, error)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("rows", "width", "out"),
    [
        ((1,), 1, 1),
        ((13,), 7, 33),
        ((2, 3), 16, 32),
        ((96,), 64, 64),
        ((5, 5), 801, 67),
        ((3,), 1600, 2),
        ((1537,), 5, 130),
        ((12,), 2, 1600),
    ],
)
def test_values_and_gradients(rows: tuple[int, ...], width: int, out: int, bias: bool, ours: list[tuple[int, ...]]) -> None:
    """Depths of one, two and three pieces, rows of two blocks, and edges on every side."""
    torch.manual_seed(0)
    inputs = leaves(rows, width, out, bias)
    assert_exact(results(products.linear, inputs), inputs)
    assert len(ours) == 3


@pytest.mark.parametrize("bias", [False, True])
def test_torchs_product_among_the_large_tensors(bias: bool, ours: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where MKL is fast training calls it, with the same backward."""
    monkeypatch.setattr(products, "ours_is_faster", lambda: False)
    torch.manual_seed(0)
    inputs = leaves((3, 177), 300, 411, bias)
    inputs["x"] = inputs["x"].transpose(0, 1)
    assert_exact(results(products.linear, inputs), inputs)
    assert len(ours) == 3


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_outputs_without_gradients(
    dtype: torch.dtype, bias: bool, ours: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's product, in a buffer of its own; torch's memory for a smaller one, for a few rows, and where a mode would see the call."""
    monkeypatch.setattr(products, "ours_is_faster", lambda: False)
    inputs = {k: v.to(dtype) for k, v in leaves((3, 177), 300, 1003, bias).items()}

    def run(rows: int) -> bool:
        ours.clear()
        given = {**inputs, "x": inputs["x"][:, :rows].contiguous()}
        with torch.no_grad():
            y = products.linear(**given)
        assert torch.equal(y, F.linear(**given))
        assert y.untyped_storage().resizable() is not bool(ours)
        return bool(ours)

    enough = -(-products.OUTPUT // (3 * 1003 * dtype.itemsize))
    inputs["x"] = inputs["x"].repeat(1, 3, 1)
    assert run(enough)
    assert not run(enough - 1)
    with torch.device("cpu"):  # a mode
        assert not run(enough)
    monkeypatch.setattr(products, "FEW", 3 * enough + 1)
    assert not run(enough)


@pytest.mark.parametrize("threads", [2, 3])
def test_the_same_bits_at_any_number_of_threads(threads: int, on_threads: Callable[[int], None]) -> None:
    torch.manual_seed(0)
    inputs = leaves((77,), 900, 131, True)
    on_threads(1)
    one = results(products.linear, inputs)
    on_threads(threads)
    for name, value in results(products.linear, inputs).items():
        assert torch.equal(value, one[name]), name


def test_strides_of_all_kinds() -> None:
    """Slices, transposes, every second number, expanded cotangents."""
    torch.manual_seed(0)
    wide = torch.randn(2, 9, 40)
    for x in (
        wide[..., 3:20],
        wide[..., ::2][..., :17],
        wide.transpose(0, 1)[..., :17],
        torch.randn(17, 9).T,
        torch.randn(17).expand(4, 17),
    ):
        for weight in (torch.randn(8, 17), torch.randn(17, 8).T, torch.randn(8, 34)[:, ::2], torch.randn(1, 17).expand(8, 17)):
            inputs = {"x": x, "weight": weight, "bias": torch.randn(16)[::2]}
            assert_exact(results(products.linear, inputs), inputs)
            gy = torch.tensor(0.7).expand(*x.shape[:-1], 8)
            assert_exact(results(products.linear, inputs, gy), inputs, gy)
            gy = torch.randn(8).expand(*x.shape[:-1], 8)
            assert_exact(results(products.linear, inputs, gy), inputs, gy)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_few_rows_without_gradients(
    dtype: torch.dtype, ours: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch, on_threads: Callable[[int], None]
) -> None:
    """The engine's kernel: rows that lie anywhere, any bias, the same bits in any company and on any threads; one more row is another's."""
    monkeypatch.setattr(products, "FEW_ENOUGH", {dtype: 6})
    monkeypatch.setattr(products, "onednn", None)
    few, calls = products._few, list[int]()
    monkeypatch.setattr(products, "_few", lambda *arguments: calls.append(1) or few(*arguments))
    torch.manual_seed(0)
    wide = torch.randn(2, 3, 90).to(dtype)
    for x in (wide[..., 3:40], wide[..., ::2][..., :37], torch.randn(37, 5).to(dtype).T, wide[:1, :1, :37], wide[0, 0, :37]):
        for weight in (torch.randn(50, 37).to(dtype), torch.randn(50, 80).to(dtype)[:, 5:42]):
            for bias in (None, torch.randn(100).to(dtype)[::2]):
                calls.clear()
                y = products.linear(x, weight, bias)
                assert calls == [1]
                exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
                assert y.dtype == dtype
                torch.testing.assert_close(y, exact.to(dtype), rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)
    x, weight = wide[..., :37].flatten(0, 1), torch.randn(50, 37).to(dtype)
    together = products.linear(x, weight)
    for threads in (1, 2, 3):
        on_threads(threads)
        for i in range(6):
            assert torch.equal(products.linear(x[i], weight), together[i])
    calls.clear()
    ours.clear()
    products.linear(torch.randn(7, 37).to(dtype), weight)
    products.linear(x, torch.randn(37, 50).to(dtype).T)  # rows of a weight that are columns in memory
    products.linear(x, weight.clone().requires_grad_()).float().sum().backward()
    assert not calls
    assert len(ours) == (4 if dtype == torch.float32 else 0)
    with pytest.raises(RuntimeError):
        products.linear(x, weight.double())


def test_not_a_number_stays_in_its_row() -> None:
    x, weight = torch.randn(20, 9), torch.randn(35, 9)
    x[7, 3], weight[33, 0] = float("nan"), float("inf")
    y = products.linear(x, weight)
    expected = F.linear(x, weight)
    torch.testing.assert_close(y, expected, equal_nan=True)
    assert y[7].isnan().all()
    assert not y[:7].isnan().any()


def test_frozen_parts_cost_nothing(ours: list[tuple[int, ...]]) -> None:
    layer = Linear(9, 13)
    x = torch.randn(4, 9)
    layer(x).sum().backward()
    assert len(ours) == 2  # no gradient of x
    ours.clear()
    layer.requires_grad_(False)
    layer(x.requires_grad_()).sum().backward()
    assert len(ours) == 2  # none of the weight
    assert x.grad is not None
    ours.clear()
    with torch.no_grad():
        layer(x)
    assert len(ours) == 1


def test_second_derivatives_and_several_cotangents() -> None:
    torch.manual_seed(0)
    inputs = {k: v.double().float() for k, v in leaves((4,), 3, 5, True).items()}

    def twice(function: Any) -> list[Tensor]:
        near = {k: v.clone().requires_grad_() for k, v in inputs.items()}
        y = function(**near)
        first = torch.autograd.grad((y**3).sum(), list(near.values()), create_graph=True)
        return list(torch.autograd.grad(sum((g**2).sum() for g in first), list(near.values())))

    for mine, theirs in zip(twice(products.linear), twice(F.linear), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-3)
    x, weight = inputs["x"].requires_grad_(), inputs["weight"].requires_grad_()
    sides = torch.randn(6, 4, 5)
    for function in (products.linear, F.linear):
        found = torch.autograd.grad(function(x, weight), (x, weight), sides, is_grads_batched=True)
        torch.testing.assert_close(found[0], sides @ weight)
        torch.testing.assert_close(found[1], sides.transpose(1, 2) @ x)


def test_left_to_torch(ours: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.randn(4, 9), torch.randn(13, 9)

    def by_us(*arguments: Any) -> bool:
        ours.clear()
        products.linear(*arguments)
        return bool(ours)

    if onednn is not None:
        monkeypatch.setattr(products, "onednn", onednn)
        for bias in (None, torch.randn(13)):
            for given in (x, torch.randn(2, 4, 18)[..., ::2], torch.randn(9, 4).T):
                torch.testing.assert_close(products.linear(given, weight, bias), F.linear(given, weight, bias))
        assert not ours
        assert by_us(x, weight.clone().requires_grad_())
        monkeypatch.setattr(products, "onednn", None)

    assert by_us(x, weight)
    assert not by_us(x.double(), weight.double())
    assert not by_us(x.bfloat16(), weight.bfloat16())
    assert not by_us(x.to("meta"), weight.to("meta"))
    assert not by_us(x[:0], weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not by_us(x, weight)
    ours.clear()
    torch.func.vmap(products.linear, in_dims=(0, None))(torch.randn(2, 4, 9), weight)
    torch.func.jvp(lambda x: products.linear(x, weight), (x,), (x,))
    torch.compile(products.linear, backend="eager", fullgraph=True)(x, weight)
    assert not ours
    monkeypatch.setattr(products, "FEW", 5)
    assert not by_us(x, weight)
    monkeypatch.setattr(products, "FEW", 1)
    monkeypatch.setattr(products, "NARROW", 10)
    assert not by_us(x, weight)
    monkeypatch.setattr(products, "NARROW", 1)
    assert not by_us(x, weight, torch.randn(1))  # a bias that torch broadcasts: the kernel would read behind it
    for wrong in ((x, torch.randn(13, 8)), (x, weight, torch.randn(12))):
        with pytest.raises(RuntimeError):
            products.linear(*wrong)


def test_a_layer_compiles_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # nothing of this module's fixture: the choice of a processor must not be traced
    layer, x = Linear(9, 13), torch.randn(4, 9)
    torch.testing.assert_close(torch.compile(layer, backend="eager", fullgraph=True)(x), layer(x))
    assert len(list(torch.export.export(layer, (x,)).graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default))) == 1


def test_a_layer_is_a_linear() -> None:
    """Names, initial values and printing are torch's; torch's own serialisation and copies work."""
    torch.manual_seed(0)
    mine = Linear(9, 13)
    torch.manual_seed(0)
    theirs = nn.Linear(9, 13)
    for name, value in theirs.state_dict().items():
        assert torch.equal(mine.state_dict()[name], value)
    assert repr(mine) == repr(theirs)
    x = torch.randn(4, 9)
    torch.testing.assert_close(copy.deepcopy(mine)(x), theirs(x))


@pytest.mark.parametrize("name", ["mamba-tiny", "mamba2-tiny", "jamba-tiny"])
def test_a_model_trains_the_same(name: str, ours: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients by name beside torch's products; checkpointed too, whose forward runs again in the backward."""
    torch.manual_seed(0)
    model = ss.create_model(name)
    ids = torch.randint(0, model.vocab_size, (2, 12))

    def gradients(saved: bool) -> dict[str, Tensor]:
        model.zero_grad()
        logits = checkpoint(model, ids, use_reentrant=False) if saved else model(ids)
        model.loss(logits, ids).backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    found, again = gradients(False), gradients(True)
    assert ours
    monkeypatch.setattr(products, "FEW", 1 << 30)
    for n, expected in gradients(False).items():
        torch.testing.assert_close(found[n], expected, rtol=1e-3, atol=1e-5, msg=lambda m, n=n: f"{n}: {m}")
        torch.testing.assert_close(again[n], found[n], rtol=0, atol=0)
