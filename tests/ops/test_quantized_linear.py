"""The quantised product: every implementation against the float64 reference, gradients, and what the kernel promises about its bits."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from statescan.ops import native_gate as gate
from statescan.ops import quantized_linear
from statescan.ops.dispatch import implementation, ops
from statescan.ops.quantized_linear.cases import SHAPES, Shape, make
from statescan.ops.quantized_linear.native import FEW, _values
from statescan.ops.quantized_linear.reference import dequantize

DTYPES = (torch.float64, torch.float32, torch.bfloat16)
TOLERANCE = ops["quantized_linear"].tolerance
needs_kernels = pytest.mark.skipif(gate.module is None, reason="the compiled kernels are not installed")


def outcome(how: str, shape: Shape, dtype: torch.dtype) -> dict[str, Tensor]:
    arguments = make(shape, torch.bfloat16 if dtype == torch.bfloat16 else torch.float32)
    for name in ("x", "bias"):
        if arguments[name] is not None:
            arguments[name] = arguments[name].to(dtype).requires_grad_()
    with implementation(how):
        y = quantized_linear(**arguments)
        with torch.no_grad():
            found = {"y": y.detach(), "y without gradients": quantized_linear(**arguments)}
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    y.backward(cotangent.to(dtype))
    return found | {f"gradient of {n}": arguments[n].grad for n in ("x", "bias") if arguments[n] is not None}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("how", ["portable", "native"])
@pytest.mark.parametrize("name", SHAPES)
def test_agrees_with_the_reference(name: str, how: str, dtype: torch.dtype) -> None:
    if how == "native" and (dtype == torch.float64 or gate.module is None):
        pytest.skip("the kernels take float32 and bfloat16, where they are installed")
    got = outcome(how, SHAPES[name], dtype)
    shape = SHAPES[name]
    inputs = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
    arguments = make(shape, inputs)
    x = arguments["x"].double().requires_grad_()
    bias = None if arguments["bias"] is None else arguments["bias"].double().requires_grad_()
    with implementation("reference"):
        y = quantized_linear(x, **{k: v for k, v in arguments.items() if k not in ("x", "bias")}, bias=bias)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    y.backward(cotangent.double())
    expected = {"y": y.detach(), "y without gradients": y.detach(), "gradient of x": x.grad}
    if bias is not None:
        expected["gradient of bias"] = bias.grad
    assert got.keys() == expected.keys()
    for key, want in expected.items():
        assert want is not None
        assert got[key].dtype == dtype
        assert (got[key].double() - want).abs().max() <= TOLERANCE[dtype] * want.abs().max().clamp(min=1.0), key


@pytest.mark.parametrize("name", [n for n, s in SHAPES.items() if s.inputs < 1000])
def test_few_rows_on_every_instruction_set(isa: str, name: str) -> None:
    arguments = make(SHAPES[name])
    arguments["x"] = arguments["x"].reshape(-1, arguments["x"].shape[-1])[:FEW]
    with implementation("native"), torch.no_grad():
        got = quantized_linear(**arguments)
    values = dequantize(arguments["weight"], arguments["scale"], SHAPES[name].outputs, SHAPES[name].inputs, torch.float64)
    expected = arguments["x"].double() @ values.T + (0.0 if arguments["bias"] is None else arguments["bias"].double())
    assert (got - expected).abs().max() <= 5e-5 * expected.abs().max()
    assert not torch.equal(got.double(), expected), "the kernel did not run"


@pytest.mark.parametrize("name", SHAPES)
def test_the_numbers_that_many_rows_multiply_with(isa: str, name: str) -> None:
    arguments = make(SHAPES[name])
    sizes = (SHAPES[name].outputs, SHAPES[name].inputs, torch.float32)
    weight, scale = arguments["weight"], arguments["scale"]
    assert torch.equal(_values(weight, scale, *sizes), dequantize(weight, scale, *sizes))


@needs_kernels
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("group", [64, 128, 256])
def test_a_row_has_the_same_bits_alone_in_a_batch_and_at_any_thread_count(
    isa: str, bits: int, group: int, on_threads: Callable[[int], None]
) -> None:
    arguments = make(Shape((15,), 700, 1500, bits, group, bias=True))
    with implementation("native"), torch.no_grad():
        results = []
        for threads in (1, 2, 3):
            on_threads(threads)
            results.append(quantized_linear(**arguments))
        alone = torch.cat([quantized_linear(**arguments | {"x": row}) for row in arguments["x"].split(1)])
    assert all(torch.equal(result, alone) for result in results)


@needs_kernels
@pytest.mark.parametrize("bits", [8, 4])
def test_what_is_not_finite_stays_in_its_row(bits: int) -> None:
    arguments = make(Shape((5,), 130, 9, bits))
    clean = arguments["x"].clone()
    arguments["x"][1, 70], arguments["x"][3, 129] = float("nan"), float("inf")
    with implementation("native"), torch.no_grad():
        got, expected = quantized_linear(**arguments), quantized_linear(**arguments | {"x": clean})
    assert got[[1, 3]].isnan().all()
    assert torch.equal(got[[0, 2, 4]], expected[[0, 2, 4]])


@needs_kernels
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("size", [0.0, 1e-40, 1e-20, 1e30])
def test_activations_of_any_size(bits: int, size: float) -> None:
    arguments = make(Shape((2,), 100, 9, bits))
    arguments["x"] = arguments["x"] * size
    with implementation("native"), torch.no_grad():
        got = quantized_linear(**arguments)
    with implementation("reference"):
        expected = quantized_linear(**arguments | {"x": arguments["x"].double()})
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max() + 1e-30


@needs_kernels
@pytest.mark.parametrize("bits", [8, 4])
def test_the_largest_sums_do_not_overflow(isa: str, bits: int) -> None:
    arguments = make(Shape((1,), 512, 3, bits, 256))
    arguments["x"].fill_(1.0)
    arguments["weight"].fill_(127 if bits == 8 else 0)  # 0 is -8 twice
    arguments["scale"].fill_(1.0)
    with implementation("native"), torch.no_grad():
        got = quantized_linear(**arguments)
    torch.testing.assert_close(got, torch.full((1, 3), 512 * (127.0 if bits == 8 else -8.0)), rtol=1e-5, atol=0)


@needs_kernels
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("rows", [3, FEW + 1])
@pytest.mark.parametrize("at_end", [True, False])
def test_reads_nothing_beside_its_buffers(isa: str, bits: int, rows: int, at_end: bool) -> None:
    """Each buffer ends (or begins) at a page that may not be touched."""
    arguments = make(Shape((rows,), 129, 7, bits, bias=True))
    kept = []

    def guarded(tensor: Tensor) -> Tensor:
        page, raw = mmap.PAGESIZE, tensor.contiguous().view(torch.uint8).flatten()
        pages = -(-raw.numel() // page)
        memory = mmap.mmap(-1, (pages + 2) * page)
        kept.append(memory)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        for edge in (0, pages + 1):
            assert protect(ctypes.c_void_p(address + edge * page), ctypes.c_size_t(page), 0) == 0
        start = (pages + 1) * page - raw.numel() if at_end else page
        inside = torch.frombuffer(memory, dtype=torch.uint8, count=raw.numel(), offset=start)
        inside.copy_(raw)
        return inside.view(tensor.dtype).view(tensor.shape)

    with implementation("native"), torch.no_grad():
        expected = quantized_linear(**arguments)
        got = quantized_linear(**{k: guarded(v) if isinstance(v, Tensor) else v for k, v in arguments.items()})
    assert torch.equal(got, expected)


@needs_kernels
@pytest.mark.parametrize("rows", [2, 20])
def test_the_op_is_well_formed(rows: int) -> None:
    arguments = make(Shape((rows,), 70, 5, 4, bias=True))
    arguments["x"].requires_grad_()
    arguments["bias"].requires_grad_()
    torch.library.opcheck(torch.ops.statescan.quantized_linear.default, (*arguments.values(), True))


def test_portable_has_all_derivatives() -> None:
    arguments = make(Shape((3,), 70, 5, 4, bias=True), torch.float64)
    weight, scale = arguments["weight"], arguments["scale"]
    leaves = (arguments["x"].requires_grad_(), arguments["bias"].requires_grad_())

    def run(x: Tensor, bias: Tensor) -> Tensor:
        return quantized_linear(x, weight, scale, bias, out_features=5)

    with implementation("portable"):
        assert torch.autograd.gradcheck(run, leaves, fast_mode=True)
        assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True)


def test_portable_keeps_no_float_weight_for_the_backward_pass() -> None:
    arguments = make(Shape((20,), 640, 512, 4))
    arguments["x"].requires_grad_()
    sizes: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel() * tensor.element_size())
        return tensor

    for how in ("portable", "native"):
        if how == "native" and gate.module is None:
            continue
        with implementation(how), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            quantized_linear(**arguments)
    assert sizes
    assert max(sizes) < 640 * 512


@needs_kernels
def test_a_second_derivative_names_the_way_out() -> None:
    arguments = make(Shape((3,), 70, 5, 4))
    x = arguments["x"].requires_grad_()
    with implementation("native"):
        (gradient,) = torch.autograd.grad(quantized_linear(**arguments).square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="quantized_linear='portable'"):
            gradient.sum().backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group_size": 32}, "group_size must be one of 64, 128, 256; got 32"),
        ({"group_size": 128}, "weight must have shape"),
        ({"x": torch.randn(2, 71)}, "weight must have shape"),
        ({"scale": torch.ones(5, 1)}, "scale bfloat16"),
        ({"weight": torch.ones(5, 64)}, "weight must be int8"),
        ({"bias": torch.ones(4)}, "bias must have shape"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, object], message: str) -> None:
    arguments = make(Shape((2,), 64, 5, 8, bias=True)) | change
    with pytest.raises(ValueError, match=message):
        quantized_linear(**arguments)
