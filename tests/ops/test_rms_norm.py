"""The norm: every implementation against the float64 reference, gradients by name, what is kept, bits, and compilers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from statescan.layers import GatedRMSNorm
from statescan.ops import native_gate as gate
from statescan.ops import rms_norm
from statescan.ops.dispatch import explain, implementation, ops
from statescan.ops.rms_norm.cases import SHAPES, make

F32, BF16, F64 = torch.float32, torch.bfloat16, torch.float64
TOLERANCE = ops["rms_norm"].tolerance
needs_kernels = pytest.mark.skipif(gate.module is None, reason="the compiled kernels are not installed")
GATES = ("heads", "gate first, odd groups", "gate last, odd groups")


@pytest.fixture(autouse=True)
def poison() -> Iterator[None]:
    """Memory that nobody wrote holds NaN."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]


def outcome(how: str, arguments: dict[str, Any]) -> dict[str, Tensor]:
    """y, and the gradient of every tensor, by name."""
    leaves = {k: v.detach().clone().requires_grad_() for k, v in arguments.items() if isinstance(v, Tensor)}
    with implementation(how):
        y = rms_norm(**arguments | leaves)
        with torch.no_grad():
            plain = rms_norm(**arguments | leaves)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    gradients = torch.autograd.grad(y, list(leaves.values()), cotangent.to(y.dtype))
    named = {f"gradient of {k}": v for k, v in zip(leaves, gradients, strict=True)}
    return {"y": y.detach(), "y without gradients": plain, **named}


def expected_of(arguments: dict[str, Any]) -> dict[str, Tensor]:
    return outcome("reference", {k: v.double() if isinstance(v, Tensor) else v for k, v in arguments.items()})


def check(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert got.keys() == expected.keys()
    for key, want in expected.items():
        assert got[key].shape == want.shape, key
        error = (got[key].double() - want).abs().max().item() if want.numel() else 0.0
        assert error <= tolerance * max(1.0, want.abs().max().item() if want.numel() else 0.0), f"{key} is off by {error:.2e}"


@pytest.mark.parametrize(("dtype", "weight_dtype"), [(F64, F64), (F32, F32), (BF16, BF16), (F32, BF16), (BF16, F32)])
@pytest.mark.parametrize("how", ["portable", "native"])
@pytest.mark.parametrize("name", SHAPES)
def test_agrees_with_the_reference(name: str, how: str, dtype: torch.dtype, weight_dtype: torch.dtype) -> None:
    if how == "native" and (dtype == F64 or gate.module is None):
        pytest.skip("the kernel takes float32 and bfloat16, where it is installed")
    arguments = make(SHAPES[name], dtype, weight_dtype)
    got = outcome(how, arguments)
    check(got, expected_of(arguments), TOLERANCE[BF16 if BF16 in (dtype, weight_dtype) else dtype])
    assert got["y"].dtype == (weight_dtype if SHAPES[name].weight else dtype)
    for key in ("x", "weight", "z"):
        if arguments[key] is not None:
            assert got[f"gradient of {key}"].dtype == arguments[key].dtype


@needs_kernels
@pytest.mark.usefixtures("isa")
def test_every_instruction_set() -> None:
    for shape in SHAPES.values():
        arguments = make(shape)
        check(outcome("native", arguments), expected_of(arguments), TOLERANCE[F32])


@needs_kernels
@pytest.mark.parametrize("gated", [None, "first", "last"])
def test_same_bits_at_any_number_of_threads(gated: str | None, on_threads: Callable[[int], None]) -> None:
    arguments = make(SHAPES["several blocks"]._replace(rows=(3, 400), gate=gated))
    found = []
    for threads in (1, 2, 3):
        on_threads(threads)
        found.append(outcome("native", arguments))
    for other in found[1:]:
        for key, value in found[0].items():
            assert torch.equal(value, other[key]), key


@needs_kernels
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_slices_of_a_projection_are_read_in_place(dtype: torch.dtype) -> None:
    """Slices off the start, every second number, and columns first: the same bits."""
    arguments = make(SHAPES["gate first, odd groups"], dtype)
    with torch.no_grad(), implementation("native"):
        expected = rms_norm(**arguments)
        both = torch.cat([arguments["x"][..., :1], arguments["z"], arguments["x"]], dim=-1)
        sliced = {"x": both[..., 36:], "z": both[..., 1:36]}
        doubled = {k: arguments[k].repeat_interleave(2, dim=-1)[..., ::2] for k in "xz"}
        turned = {k: arguments[k].mT.contiguous().mT for k in "xz"}
        for other in (sliced, doubled, turned):
            assert torch.equal(rms_norm(**arguments | other), expected)


@needs_kernels
@pytest.mark.parametrize("before", [False, True])
def test_the_backward_pass_keeps_the_inputs_alone(before: bool) -> None:
    layer = GatedRMSNorm(24, 2, norm_before_gate=before)
    y, z = (torch.randn(2, 5, 24, requires_grad=True) for _ in range(2))
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        layer(y, z)
    assert set(kept) == {y.data_ptr(), z.data_ptr(), layer.weight.data_ptr()}


@needs_kernels
@pytest.mark.parametrize("name", [*GATES, "gate last, without weight"])
def test_opcheck(name: str) -> None:
    a = make(SHAPES[name])
    for t in (a["x"], a["weight"], a["z"]):
        if t is not None:
            t.requires_grad_()
    torch.library.opcheck(
        torch.ops.statescan.rms_norm.default,
        (a["x"], a["weight"], a["z"], a["groups"], 1e-5, a["norm_before_gate"]),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"),
    )


@needs_kernels
@pytest.mark.parametrize("name", GATES)
def test_compiled_and_exported_equal_eager(name: str) -> None:
    fixed = make(SHAPES[name])
    tensors = {k: fixed.pop(k).requires_grad_() for k in ("x", "weight", "z") if fixed[k] is not None}

    class Call(torch.nn.Module):
        def forward(self, tensors: dict[str, Tensor]) -> Tensor:
            return rms_norm(**fixed | tensors)

    with implementation("native"):
        expected = Call()(tensors)
        compiled = torch.compile(Call(), backend="aot_eager", fullgraph=True)(tensors)
        exported = torch.export.export(Call(), (tensors,)).module()(tensors)
    assert torch.equal(compiled, expected)
    assert torch.equal(exported, expected)
    leaves = list(tensors.values())
    pairs = zip(torch.autograd.grad(compiled.sum(), leaves), torch.autograd.grad(expected.sum(), leaves), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@needs_kernels
@pytest.mark.parametrize("name", GATES)
def test_double_backward_raises_and_names_portable(name: str) -> None:
    arguments = make(SHAPES[name])
    arguments["x"].requires_grad_()
    (first,) = torch.autograd.grad(rms_norm(**arguments).square().sum(), arguments["x"], create_graph=True)
    with pytest.raises(RuntimeError, match="portable"):
        first.sum().backward()


@pytest.mark.parametrize("how", ["reference", "portable"])
@pytest.mark.parametrize("name", GATES)
def test_derivatives_are_right(name: str, how: str) -> None:
    arguments = make(SHAPES[name]._replace(rows=(2,)), F64)
    names = [k for k in ("x", "weight", "z") if arguments[k] is not None]
    tensors = tuple(arguments[k].requires_grad_() for k in names)
    with implementation(how):

        def call(*values: Tensor) -> Tensor:
            return rms_norm(**arguments | dict(zip(names, values, strict=True)))

        assert torch.autograd.gradcheck(call, tensors, fast_mode=True, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(call, tensors, fast_mode=True)


@needs_kernels
def test_transforms_and_tangents_fall_to_portable() -> None:
    arguments = make(SHAPES["gate first"])
    x = arguments.pop("x")
    expected = rms_norm(x, **arguments)
    arguments["z"] = z = arguments["z"][0]
    together = torch.func.vmap(lambda row: rms_norm(row, **arguments))(x)
    assert explain(1)[0].ran == "portable"
    assert "functorch" in explain(1)[0].refused["native"]
    torch.testing.assert_close(together[0], expected[0], rtol=1e-5, atol=1e-5)
    with torch.autograd.forward_ad.dual_level():
        rms_norm(torch.autograd.forward_ad.make_dual(z, z), **arguments)
    assert "tangent" in explain(1)[0].refused["native"]


@needs_kernels
def test_autocast_leaves_the_dtypes_alone() -> None:
    arguments = make(SHAPES["gate first"])
    with torch.no_grad():
        expected = rms_norm(**arguments)
        with torch.autocast("cpu", dtype=BF16):
            assert torch.equal(rms_norm(**arguments), expected)


@needs_kernels
def test_refusals_are_sentences() -> None:
    fixed = {"weight": None, "z": None, "groups": 1, "eps": 1e-5, "norm_before_gate": False}
    refused = ops["rms_norm"].available
    assert "the width is 0" in str(refused(x=torch.zeros(2, 0), **fixed)["native"])
    assert "float64" in str(refused(x=torch.zeros(2, 3, dtype=F64), **fixed)["native"])
    assert "run on a CPU" in str(refused(x=torch.zeros(2, 3, device="meta"), **fixed)["native"])


def test_wrong_arguments() -> None:
    x = torch.zeros(2, 6)
    with pytest.raises(ValueError, match="groups must divide the width; got 4 and 6"):
        rms_norm(x, groups=4)
    with pytest.raises(ValueError, match="groups must divide the width; got 0 and 6"):
        rms_norm(x, groups=0)
    with pytest.raises(ValueError, match=r"weight must have shape \(6\); got \(5,\)"):
        rms_norm(x, torch.ones(5))
    with pytest.raises(ValueError, match=r"z must have shape \(2, 6\); got \(1, 6\)"):
        rms_norm(x, z=torch.zeros(1, 6))
