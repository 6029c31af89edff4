"""What the ops promise beside agreeing with their references: chunks, packing, masks, identities between ops, extremes, compilers."""

from __future__ import annotations

import importlib
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from statescan import ops
from statescan.ops.dispatch import implementation
from statescan.ops.dispatch import ops as registered
from statescan.timeline import Timeline

NAMES = ("causal_conv1d", "diagonal_scan", "selective_scan", "ssd")
PER_POSITION = ("x", "delta", "B", "C", "z", "a", "b")
EVERY = [pytest.param(op, name, id=f"{op}-{name}") for op in NAMES for name in registered[op].implementations]


def arguments_of(op: str, name: str, *, mask: bool = False, seed: int = 0) -> tuple[Any, dict[str, Any], float]:
    """The op's function, arguments of its case "everything" (without a mask unless asked for), and the tolerance."""
    module = importlib.import_module(f"statescan.ops.{op}.cases")
    case = next(case for case in module.CASES if case.name == "everything")
    if not mask:
        case = case._replace(options=tuple(option for option in case.options if option != "mask"))
    dtype = torch.float32 if name == "native" else torch.float64
    return getattr(ops, op), module.make(case, dtype, seed=seed), registered[op].tolerance[dtype]


def run(op: str, name: str, function: Any, arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    try:
        with implementation(name):
            return function(**arguments)
    except ValueError as error:
        if "refuses" not in str(error):
            raise
        pytest.skip(str(error))


def at(arguments: dict[str, Any], index: Any, rows: Any = slice(None)) -> dict[str, Any]:
    """Some positions (a slice or indices) of some rows."""
    out = {k: v[rows][:, index] if k in PER_POSITION else v for k, v in arguments.items()}
    line = arguments["timeline"]
    out["timeline"] = Timeline(*(field[rows][:, index] if isinstance(field, Tensor) else field for field in line))
    if "state" in arguments:
        out["state"] = arguments["state"][rows]
    return out


def close(got: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(got, expected, atol=tolerance * max(1.0, expected.abs().max().item()), rtol=0)


@pytest.mark.parametrize(("op", "name"), EVERY)
def test_chunks_equal_the_whole(op: str, name: str) -> None:
    function, arguments, tolerance = arguments_of(op, name, mask=True)
    y, last = run(op, name, function, arguments)
    length, state, pieces = y.shape[1], arguments["state"], []
    cuts = [0, 1, 2, 18, 50, 64, length]
    for start, stop in itertools.pairwise(cuts):
        piece, state = run(op, name, function, at(arguments, slice(start, stop)) | {"state": state})
        pieces.append(piece)
    close(torch.cat(pieces, 1), y, tolerance)
    close(state, last, tolerance)


@pytest.mark.parametrize(("op", "name"), EVERY)
def test_gradients_flow_through_the_state_handed_on(op: str, name: str) -> None:
    function, arguments, tolerance = arguments_of(op, name, mask=True)
    first = next(k for k in PER_POSITION if k in arguments)
    gradients = []
    for cuts in ([0, 67], [0, 31, 67]):
        leaf = arguments[first].detach().clone().requires_grad_()
        whole, state, total = arguments | {first: leaf}, arguments["state"], torch.zeros(())
        whole["timeline"] = whole["timeline"]._replace(reset=None)
        whole.pop("reset_to", None)
        for start, stop in itertools.pairwise(cuts):
            y, state = run(op, name, function, at(whole, slice(start, stop)) | {"state": state})
            total = total + y.sin().sum()
        (total + state.sin().sum()).backward()
        gradients.append(leaf.grad)
    close(gradients[1], gradients[0], tolerance)


@pytest.mark.parametrize(("op", "name"), EVERY)
def test_packed_equals_apart(op: str, name: str) -> None:
    function, arguments, tolerance = arguments_of(op, name)
    lengths = [3, 1, 40, 2]
    lengths.append(arguments["timeline"].reset.shape[1] - sum(lengths))
    packed = Timeline.packed([lengths] * 3)
    arguments["timeline"] = arguments["timeline"]._replace(reset=packed.reset)
    y, last = run(op, name, function, arguments)
    start = 0
    for length in lengths:
        alone = at(arguments, slice(start, start + length))
        alone["timeline"] = alone["timeline"]._replace(reset=None)
        alone["state"] = alone.pop("reset_to", None)
        piece, state = run(op, name, function, alone)
        close(y[:, start : start + length], piece, tolerance)
        start += length
    close(last, state, tolerance)


@pytest.mark.parametrize(("op", "name"), EVERY)
def test_a_mask_equals_deletion(op: str, name: str) -> None:
    function, arguments, tolerance = arguments_of(op, name, mask=True)
    line = arguments["timeline"]
    y, last = run(op, name, function, arguments)
    assert (y[~line.mask] == 0).all()
    for row in range(2):  # nothing exists in the third
        exists = line.mask[row].nonzero().squeeze(1)
        since = torch.tensor([0, *(exists[:-1] + 1).tolist()])
        tail = line.reset[row, int(exists[-1]) + 1 :].any()
        kept = at(arguments, exists, slice(row, row + 1))
        # A reset at a position that does not exist holds for the next one that does.
        reset = torch.tensor([[bool(line.reset[row, a : b + 1].any()) for a, b in zip(since, exists, strict=True)]])
        kept["timeline"] = kept["timeline"]._replace(mask=None, reset=reset)
        piece, state = run(op, name, function, kept)
        close(y[row : row + 1, exists], piece, tolerance)
        if tail:
            state = arguments["reset_to"].expand_as(state) if "reset_to" in arguments else torch.zeros_like(state)
        close(last[row : row + 1], state, tolerance)
    state = arguments["reset_to"] if "reset_to" in arguments else torch.zeros_like(last[2])
    close(last[2], torch.where(line.reset[2].any(), state, arguments["state"][2]), 1e-12)


@pytest.mark.parametrize("name", ["reference", "portable", "native"])
def test_selective_scan_with_tied_decays_is_ssd(name: str) -> None:
    function, arguments, tolerance = arguments_of("ssd", name, mask=True)
    y, last = run("ssd", name, function, arguments)
    _, _, heads, p = arguments["x"].shape
    wide = {k: arguments[k] for k in ("B", "C", "delta_softplus", "timeline", "return_state")}
    low, high = arguments["delta_limit"]
    delta = torch.nn.functional.softplus(arguments["delta"] + arguments["delta_bias"]).clamp(low, high)
    wide |= {
        "x": arguments["x"].flatten(2),
        "delta": delta.repeat_interleave(p, 2),
        "A": arguments["A"].repeat_interleave(p).unsqueeze(1).repeat(1, last.shape[-1]),
        "D": arguments["D"].repeat_interleave(p),
        "delta_softplus": False,
        "state": arguments["state"].flatten(1, 2),
        "reset_to": arguments["reset_to"].flatten(0, 1),
    }
    y_wide, last_wide = run("selective_scan", name, ops.selective_scan, wide)
    close(y_wide.unflatten(2, (heads, p)), y, tolerance)
    close(last_wide.unflatten(1, (heads, p)), last, tolerance)


@pytest.mark.parametrize("name", ["reference", "portable", "native"])
def test_ssd_groups_are_copies_of_the_maps(name: str) -> None:
    function, arguments, tolerance = arguments_of("ssd", name)
    few = run("ssd", name, function, arguments)
    copied = {k: arguments[k].repeat_interleave(2, dim=2) for k in ("B", "C")}
    assert arguments["B"].shape[2] == 2
    assert arguments["x"].shape[2] == 4
    for a, b in zip(run("ssd", name, function, arguments | copied), few, strict=True):
        close(a, b, tolerance)


@pytest.mark.parametrize("chunk_size", [1, 2, 7, 64, 1000])
@pytest.mark.parametrize("name", ["portable", "native"])
def test_chunk_size_changes_nothing(name: str, chunk_size: int) -> None:
    function, arguments, tolerance = arguments_of("ssd", name, mask=True)
    expected = run("ssd", name, function, arguments)
    for a, b in zip(run("ssd", name, function, arguments | {"chunk_size": chunk_size}), expected, strict=True):
        close(a, b, tolerance)


@pytest.mark.parametrize("name", ["reference", "portable", "native"])
def test_constant_maps_make_a_convolution(name: str) -> None:
    length, width, n, step = 37, 3, 4, 0.3
    dtype = torch.float32 if name == "native" else torch.float64
    x, A, B, C = (torch.randn(*s, dtype=dtype) for s in ((2, length, width), (width, n), (n,), (n,)))
    A = -A.abs()
    arguments = {"x": x, "delta": torch.full_like(x, step), "A": A, "return_state": True}
    arguments |= {"B": B.expand(2, length, n), "C": C.expand(2, length, n)}
    y, _ = run("selective_scan", name, ops.selective_scan, arguments)
    lag = torch.arange(length).unsqueeze(1) - torch.arange(length)
    kernel = (torch.exp(step * A * lag.clamp(min=0)[..., None, None]) * step * B * C).sum(-1) * (lag >= 0).unsqueeze(-1)
    close(y, torch.einsum("tse,bse->bte", kernel, x), registered["selective_scan"].tolerance[dtype])


@pytest.mark.parametrize("name", ["portable", "native"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("raw", [-80.0, -8.0, 0.0, 8.0, 1e4])
@pytest.mark.parametrize("op", ["selective_scan", "ssd"])
def test_extreme_but_legal_inputs_stay_finite(op: str, raw: float, dtype: torch.dtype, name: str) -> None:
    length = 70
    A = -torch.logspace(-4, 3, 4)
    x = torch.randn(1, length, 4).to(dtype)
    delta = (raw + torch.randn(1, length, 4)).to(dtype)
    maps = {k: torch.randn(1, length, 2).to(dtype) for k in ("B", "C")}
    line = Timeline(reset=torch.rand(1, length) < 0.1)
    if op == "ssd":
        x = x.unsqueeze(-1)
    else:
        A = A.unsqueeze(1).repeat(1, 2)
    leaves = {"x": x, "delta": delta, "A": A, **maps}
    leaves = {k: v.requires_grad_() for k, v in leaves.items()}
    y, last = run(op, name, getattr(ops, op), leaves | {"delta_softplus": True, "timeline": line, "return_state": True})
    gradients = torch.autograd.grad(y.float().mean() + last.mean(), list(leaves.values()))
    for k, v in {"y": y, "last": last, **dict(zip(leaves, gradients, strict=True))}.items():
        assert torch.isfinite(v).all(), k


@pytest.mark.parametrize("op", NAMES)
def test_portable_is_not_rounded_by_autocast(op: str) -> None:
    module = importlib.import_module(f"statescan.ops.{op}.cases")
    arguments = module.make(module.CASES[-2], torch.float32) if op != "diagonal_scan" else module.make(module.CASES[0], torch.float32)
    expected = run(op, "portable", getattr(ops, op), arguments)
    with torch.autocast("cpu", torch.bfloat16):
        got = run(op, "portable", getattr(ops, op), arguments)
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])


def test_portable_selective_scan_keeps_less_than_all_states() -> None:
    batch, length, width, n = 1, 512, 8, 16
    kept: list[int] = []
    x, delta = torch.randn(batch, length, width, requires_grad=True), torch.rand(batch, length, width)
    maps = [torch.randn(batch, length, n) for _ in range(2)]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t), implementation("portable"):
        ops.selective_scan(x, delta, -torch.rand(width, n), *maps)
    assert 0 < sum(kept) < length * (6 * width + 2 * n + width * n / 16)


class Call(torch.nn.Module):
    def __init__(self, op: str, fixed: dict[str, Any]) -> None:
        super().__init__()
        self.op, self.fixed = op, fixed

    def forward(self, moving: dict[str, Tensor], reset: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return getattr(ops, self.op)(**self.fixed, **moving, timeline=Timeline(reset, mask))


def moving_arguments(op: str, batch: int, length: int) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """(what stays the same, what has a batch and a length)."""
    module = importlib.import_module(f"statescan.ops.{op}.cases")
    case = next(case for case in module.CASES if case.name == "everything")
    case = case._replace(sizes=case.sizes | {"B": batch, "L": length}, options=tuple(o for o in case.options if o != "interval"))
    arguments = module.make(case, torch.float64)
    line = arguments.pop("timeline")
    moving = {k: arguments.pop(k) for k in (*PER_POSITION, "state") if k in arguments}
    return arguments, (moving, line.reset, line.mask)


@pytest.mark.parametrize("op", NAMES)
def test_portable_compiles_once_for_every_length(op: str) -> None:
    counter, counts = CompileCounterWithBackend("aot_eager"), []
    torch._dynamo.reset()
    fixed, _ = moving_arguments(op, 2, 10)
    module = Call(op, fixed)
    compiled = torch.compile(module, backend=counter, fullgraph=True, dynamic=True)
    with implementation("portable"):
        for length in (37, 64, 131):
            _, inputs = moving_arguments(op, 2, length)
            leaf = next(iter(inputs[0].values())).requires_grad_()
            (got_y, got), (y, last) = compiled(*inputs), module(*inputs)
            close(got_y, y, 1e-12)
            close(got, last, 1e-12)
            (a,), (b,) = torch.autograd.grad(got_y.sum() + got.sum(), leaf), torch.autograd.grad(y.sum() + last.sum(), leaf)
            close(a, b, 1e-12)
            counts.append(counter.frame_count)
    assert counts[0] > 0
    assert counts == counts[:1] * 3, "another length was compiled anew"


@pytest.mark.parametrize("op", NAMES)
def test_portable_exports_with_any_batch_and_length(op: str) -> None:
    fixed, inputs = moving_arguments(op, 2, 37)
    module = Call(op, fixed)
    batch, length = torch.export.Dim("batch", max=1000), torch.export.Dim("length", max=100_000)
    both = {0: batch, 1: length}
    shapes = ({k: {0: batch} if k == "state" else both for k in inputs[0]}, both, both)
    with implementation("portable"):
        exported = torch.export.export(module, inputs, dynamic_shapes=shapes).module()
        for sizes in ((1, 1), (3, 5), (1, 64), (2, 131)):
            _, other = moving_arguments(op, *sizes)
            for got, expected in zip(exported(*other), module(*other), strict=True):
                close(got, expected, 1e-12)
