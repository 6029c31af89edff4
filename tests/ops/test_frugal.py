"""What is cheap is computed again in the backward pass: the same bits, in less memory, unless somebody else decides what is saved."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import statescan as ss
from statescan.ops import causal_conv1d, frugal, native_gate, rms_norm

MODELS = {
    "mamba": lambda: ss.Mamba(32),
    "mamba2": lambda: ss.Mamba2(32, d_state=16, headdim=8),
    "gated-deltanet": lambda: ss.GatedDeltaNet(32, num_heads=2),
    "griffin": lambda: ss.RGLRU(32),
}


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """At any size; the recipes that were run again."""
    monkeypatch.setattr(frugal, "WORTHWHILE", 1)
    made: list[Any] = []
    run = frugal._Recipe.run

    def spied(self: frugal._Recipe) -> tuple[Tensor, ...]:
        if self.results is None:
            made.append(self)
        return run(self)

    monkeypatch.setattr(frugal._Recipe, "run", spied)
    return made


def backbone(name: str) -> nn.Module:
    torch.manual_seed(0)
    return ss.FlatBackbone(32, "M*2", {"M": lambda width: MODELS[name]()})


def gradients(model: nn.Module, x: Tensor, call: Callable[..., Any] | None = None) -> dict[str, Tensor]:
    near = x.clone().requires_grad_()
    y = (call or model)(near)
    (y * torch.linspace(-1, 1, y.shape[-1])).sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for p in model.parameters():
        p.grad = None
    assert near.grad is not None
    return {"x": near.grad, "y": y.detach(), **found}


@pytest.mark.parametrize("name", MODELS)
def test_the_same_bits(name: str, runs: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = backbone(name), torch.randn(2, 37, 32)
    found = gradients(model, x)
    assert len(runs) >= 2 * 2  # the norm before each mixer, and at least one thing in it
    assert len({id(recipe) for recipe in runs}) == len(runs)
    runs.clear()
    monkeypatch.setattr(frugal, "WORTHWHILE", 2**60)
    kept = gradients(model, x)
    assert not runs
    assert found.keys() == kept.keys()
    for key, value in kept.items():
        assert torch.equal(found[key], value), key


def test_results_are_not_kept(runs: list[Any]) -> None:
    x, taps = torch.randn(1, 64, 8, requires_grad=True), torch.randn(8, 4, requires_grad=True)
    with frugal.frugal(x):
        h = causal_conv1d(x, taps)
        y = h.sin()  # saves h
        del h
    saved = y.grad_fn._saved_self  # type: ignore[union-attr]
    assert len(runs) == 1
    assert torch.equal(saved, causal_conv1d(x, taps))


def test_a_result_of_a_result(runs: list[Any]) -> None:
    """What a recipe needs of another's result is not kept either: that runs before it."""
    x, taps, weight = torch.randn(1, 64, 8, requires_grad=True), torch.randn(8, 4), torch.randn(8)
    with frugal.frugal(x):
        h = rms_norm(causal_conv1d(x, taps), weight)
        y = h.sin()
    (grad,) = torch.autograd.grad(y.sum(), [x])
    assert [type(value).__name__ for value in runs[0].arguments.values() if isinstance(value, tuple)] == ["_Again", "_AsItIs"]
    assert len(runs) == 2
    near = x.detach().requires_grad_()
    (exact,) = torch.autograd.grad(rms_norm(causal_conv1d(near, taps), weight).sin().sum(), [near])
    assert torch.equal(grad, exact)


def test_what_stands_where_a_freed_result_stood(runs: list[Any]) -> None:
    """Another tensor must not be taken for the result, though it could lie where that lay."""
    x, taps = torch.randn(1, 64, 8, requires_grad=True), torch.randn(8, 4)
    with frugal.frugal(x):
        causal_conv1d(x, taps)  # thrown away
        others = [(x * k).sin() for k in range(1, 9)]
    (grad,) = torch.autograd.grad([y.sum() for y in others], [x])
    assert not runs
    torch.testing.assert_close(grad, sum(k * (x * k).cos() for k in range(1, 9)))


def test_a_result_that_was_changed_is_kept(runs: list[Any]) -> None:
    x, taps = torch.randn(1, 64, 8, requires_grad=True), torch.randn(8, 4)
    with frugal.frugal(x):
        h = causal_conv1d(x, taps)
        h = h.mul_(2.0)
        y = h * h
    (grad,) = torch.autograd.grad(y.sum(), [x])
    near = x.detach().requires_grad_()
    (exact,) = torch.autograd.grad((2.0 * causal_conv1d(near, taps)).square().sum(), [near])
    assert not runs
    torch.testing.assert_close(grad, exact)


@pytest.mark.parametrize("what", ["weight", "input", "other"])
def test_in_place_changes_are_noticed(what: str, runs: list[Any]) -> None:
    """Of what a recipe needs, and, as torch does, of what is saved as it is."""
    x, taps, other = torch.randn(1, 64, 8, requires_grad=True), torch.randn(8, 4, requires_grad=True), torch.randn(1, 64, 8)
    stream = x * 1
    with frugal.frugal(stream):
        y = causal_conv1d(stream, taps).square() * other
    with torch.no_grad():
        {"weight": taps, "input": stream, "other": other}[what].add_(1.0)
    with pytest.raises(RuntimeError, match="modified in place"):
        y.sum().backward()


def test_twice_and_second_derivatives(runs: list[Any]) -> None:
    x, weight = torch.randn(1, 64, 8, dtype=torch.float64, requires_grad=True), torch.randn(8, dtype=torch.float64, requires_grad=True)

    def function(x: Tensor, weight: Tensor) -> Tensor:
        with frugal.frugal(x):
            return rms_norm(x, weight).sin() * x

    y = function(x, weight).sum()
    y.backward(retain_graph=True)
    first = x.grad
    x.grad = None
    y.backward()
    assert first is not None
    assert x.grad is not None
    assert torch.equal(first, x.grad)
    assert len(runs) == 1
    assert torch.autograd.gradgradcheck(function, (x[:, :3], weight))
    assert len(runs) > 1


def test_who_else_decides(runs: list[Any]) -> None:
    """Checkpointing, offloading, torch.func, autocast, no gradients: nothing is remembered."""
    model, x = backbone("mamba"), torch.randn(2, 37, 32)
    plain = gradients(model, x)
    runs.clear()
    again = gradients(model, x, lambda near: checkpoint(model, near, use_reentrant=False))
    with torch.autograd.graph.save_on_cpu():
        offloaded = gradients(model, x)
    for key, value in plain.items():
        assert torch.equal(again[key], value), key
        assert torch.equal(offloaded[key], value), key
    with torch.autocast("cpu", torch.bfloat16):
        gradients(model, x)

    def normed(x: Tensor) -> Tensor:
        with frugal.frugal(x):
            return rms_norm(x).sin().sum()

    torch.func.grad(normed)(x)
    with torch.autograd.forward_ad.dual_level(), ss.implementation("portable"):
        dual = torch.autograd.forward_ad.make_dual(x.clone().requires_grad_(), torch.ones_like(x))
        assert torch.autograd.forward_ad.unpack_dual(normed(dual)).tangent is not None
    with torch.no_grad():
        model(x)
    assert not runs
    assert model.to("meta")(x.to("meta")).requires_grad


def test_a_small_stream(runs: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Is not worth a recipe."""
    model, x = backbone("mamba"), torch.randn(2, 37, 32)
    monkeypatch.setattr(frugal, "WORTHWHILE", x.numel() + 1)
    gradients(model, x)
    assert not runs
    monkeypatch.setattr(frugal, "WORTHWHILE", x.numel())
    gradients(model, x)
    assert runs


def test_memory_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a Mamba block 7 widths of the stream are kept, not 12: the norm's, the convolution's and the step's outputs are not."""
    kept: dict[int, int] = {}

    class Hooks(torch.autograd.graph.saved_tensors_hooks):
        def __init__(self, pack: Callable[[Tensor], Any], unpack: Callable[[Any], Tensor]) -> None:
            def counted(tensor: Tensor) -> Any:
                packed = pack(tensor)
                if isinstance(packed, frugal._AsItIs):
                    kept[packed[0].untyped_storage()._cdata] = packed[0].untyped_storage().nbytes()
                return packed

            super().__init__(counted, unpack)

    model = ss.FlatBackbone(128, "M", {"M": lambda width: ss.Mamba(width, d_state=4, dt_rank=8)})
    stream = torch.randn(1, 1024, 128, requires_grad=True)
    monkeypatch.setattr(torch.autograd.graph, "saved_tensors_hooks", Hooks)
    model(stream)
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    widths = sum(size for storage, size in kept.items() if storage not in own) / (stream.numel() * 4)
    assert 7 <= widths < 8  # the stream, what enters convolution and gate (4), what the scan gives (2), and small things


@pytest.mark.skipif(native_gate.module is None, reason=str(native_gate.unavailable))
def test_a_first_gradient_does_not_import_a_compiler() -> None:
    """torch's own way to define operators imports dynamo when one first runs: a second and 150 MiB."""
    code = """
import sys, torch, statescan
model = statescan.FlatBackbone(64, "M", {"M": lambda width: statescan.Mamba(width)})
model(torch.randn(1, 300, 64)).sum().backward()
print(any(name.startswith("torch._dynamo") for name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.skipif(native_gate.module is None, reason=str(native_gate.unavailable))
def test_kernels_under_a_compiler_that_breaks_graphs() -> None:
    """A kernel that dynamo meets in code it does not compile is not traced."""
    weight = torch.randn(8, requires_grad=True)

    @torch._dynamo.disable(recursive=False)
    def inner(x: Tensor) -> Tensor:
        return rms_norm(x, weight)

    x = torch.randn(3, 8)
    compiled = torch.compile(lambda x: inner(x + 1) * 2, backend="eager")
    for _ in range(2):
        assert torch.equal(compiled(x), rms_norm(x + 1, weight) * 2)
    assert F.mse_loss(compiled(x), x).requires_grad
