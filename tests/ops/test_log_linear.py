"""Log-linear attention against its matrix, its limits, and calls that begin anywhere in a document."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from statescan import ops
from statescan.ops import native_gate as gate
from statescan.ops.dispatch import implementation
from statescan.ops.log_linear import bit_length
from statescan.ops.log_linear.cases import CASES, make
from statescan.timeline import Timeline

NAMES = ("reference", "portable")
PER_POSITION = ("q", "k", "v", "level_scale", "log_decay", "beta")
ADDING = next(case for case in CASES if case.name == "adding")
DELTA = next(case for case in CASES if case.name == "everything")


def level(t: int, s: int) -> int:
    """As a Fenwick tree cuts the past of t: the largest power of two first."""
    number, past = 0, t
    while past:
        block = 1 << (past.bit_length() - 1)
        if s < block:
            return past.bit_length()
        past, s = past - block, s - block
    return number


def plain(case: Any, **options: Any) -> dict[str, Any]:
    """Without resets and holes."""
    kept = tuple(option for option in case.options if option not in ("reset", "mask"))
    return make(case._replace(options=kept), torch.float64) | options


def test_levels_partition_the_past() -> None:
    levels = torch.tensor([[level(t, s) if s <= t else -1 for s in range(32)] for t in range(32)])
    at = torch.arange(32)
    assert torch.equal(bit_length(at.unsqueeze(1) ^ at, 6).masked_fill(at > at.unsqueeze(1), -1), levels)
    assert [int((levels[13] == n).sum()) for n in range(5)] == [1, 1, 0, 4, 8]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("levels", [8, 5])
def test_it_is_its_matrix(name: str, levels: int) -> None:
    """(Q K^T * exp(sums of g) * Lambda) V; five levels are too few for 139 positions, and the last one takes what is older."""
    arguments = plain(ADDING, scale=1.0)
    arguments["level_scale"] = arguments["level_scale"][..., :levels]
    q, k, v, g = (arguments[key][0] for key in ("q", "k", "v", "log_decay"))
    length = v.shape[0]
    total = g.cumsum(0)
    decay = (total.unsqueeze(1) - total).movedim(-1, 0)  # (H, t, s)
    index = torch.tensor([[min(level(t, s), levels - 1) if s <= t else 0 for s in range(length)] for t in range(length)])
    weights = arguments["level_scale"][0].movedim(1, 0).gather(-1, index.expand(v.shape[1], -1, -1))
    M = torch.einsum("thk,shk->hts", q, k) * decay.exp() * weights
    with implementation(name):
        y = ops.log_linear(**arguments)
    torch.testing.assert_close(y[0], torch.einsum("hts,shv->thv", M.tril(), v), atol=1e-11, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_equal_weights_are_the_linear_layers(name: str) -> None:
    for case in (ADDING, DELTA):
        arguments = make(case, torch.float64)
        arguments["level_scale"] = torch.ones_like(arguments["level_scale"])
        line = {"timeline": arguments["timeline"], "scale": arguments.get("scale")}
        q, k, v, g = (arguments[key] for key in ("q", "k", "v", "log_decay"))
        with implementation(name):
            y = ops.log_linear(**arguments)
            expected = (
                ops.delta_rule(q, k, v, arguments["beta"], g, **line) if "beta" in arguments else ops.linear_attention(q, k, v, g, **line)
            )
        torch.testing.assert_close(y, expected, atol=1e-11, rtol=0)


@pytest.mark.parametrize("case", [ADDING, DELTA], ids=lambda case: case.name)
def test_a_call_may_begin_anywhere(case: Any) -> None:
    """Rows at different positions of their documents, under resets and holes; each implementation takes up the other's state."""
    arguments = make(case, torch.float64)
    with implementation("reference"):
        whole, (s, position) = ops.log_linear(**arguments, return_state=True)
    for names in itertools.product(NAMES, repeat=2):
        state, pieces = None, []
        for i, (start, stop) in enumerate(itertools.pairwise([0, 1, 3, 50, 67, 131, 139])):
            part = {key: value[:, start:stop] if key in PER_POSITION else value for key, value in arguments.items()}
            part["timeline"] = arguments["timeline"].slice(start, stop)
            with implementation(names[i % 2]):
                y, state = ops.log_linear(**part, state=state, return_state=True)
            pieces.append(y)
        torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-11, rtol=0)
        torch.testing.assert_close(state[0], s, atol=1e-11, rtol=0)
        assert torch.equal(state[1], position)
    assert len(set(position.tolist())) > 1


def test_the_state_is_as_small_as_it_says() -> None:
    """Behind t + 1 positions the levels that hold something are 0 and those of the bits of t."""
    arguments = plain(ADDING)
    for t in (0, 5, 12, 64, 127):
        part = {key: value[:, : t + 1] if key in PER_POSITION else value for key, value in arguments.items()}
        _, (s, position) = ops.log_linear(**part | {"timeline": Timeline()}, return_state=True)
        held = s.abs().amax((0, 1, 3, 4)) > 0
        assert held.tolist() == [True, *(bool(t >> bit & 1) for bit in range(s.shape[2] - 1))]
        assert (position == t + 1).all()


def test_gradients_reach_the_state_and_the_weights() -> None:
    arguments = plain(DELTA)
    _, (s, position) = ops.log_linear(**{k: v[:, :13] if k in PER_POSITION else v for k, v in arguments.items()}, return_state=True)
    found = []
    for name in NAMES:
        leaves: list[Tensor] = [s.clone().requires_grad_(), arguments["level_scale"][:, 13:].clone().requires_grad_()]
        rest = {k: v[:, 13:] if k in PER_POSITION else v for k, v in arguments.items()} | {"level_scale": leaves[1]}
        with implementation(name):
            y = ops.log_linear(**rest, state=(leaves[0], position))
        found.append(torch.autograd.grad(y.sin().sum(), leaves))
    for got, expected in zip(*found, strict=True):
        assert expected.abs().max() > 0
        torch.testing.assert_close(got, expected, atol=1e-10, rtol=0)


@pytest.mark.native
@pytest.mark.skipif(gate.module is None, reason=str(gate.unavailable))
@pytest.mark.parametrize("asked", ["y", "levels"])
@pytest.mark.parametrize("given", ["nothing", "levels", "levels with a gradient"])
@pytest.mark.parametrize("case", [ADDING, DELTA], ids=lambda case: case.name)
def test_native_gradients_of_one_output(case: Any, given: str, asked: str) -> None:
    """Alone, with levels that hold nothing or need no gradient, and decays that leave nothing."""
    arguments = make(case)
    length = arguments["v"].shape[1]
    arguments["log_decay"] = torch.where(torch.arange(length).view(1, -1, 1) % 37 == 20, -100.0, arguments["log_decay"])
    levels = torch.randn(arguments["v"].shape[0], *arguments["level_scale"].shape[2:], arguments["q"].shape[3], arguments["v"].shape[3])
    before = torch.tensor([64, 3, 1])
    found = {}
    for name, dtype in (("reference", torch.float64), ("native", torch.float32)):
        leaves = {key: arguments[key].to(dtype).clone().requires_grad_() for key in PER_POSITION if key in arguments}
        state = None
        if given != "nothing":
            state = (levels.to(dtype).requires_grad_("gradient" in given), before)
            leaves |= {"state": state[0]} if "gradient" in given else {}
        with implementation(name), torch.autograd.graph.save_on_cpu():
            y, (last, _) = ops.log_linear(**arguments | {k: v for k, v in leaves.items() if k != "state"}, state=state, return_state=True)
            out = y if asked == "y" else last
            weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape).sin().to(dtype)
            gradients = torch.autograd.grad((out * weights).sum(), list(leaves.values()), allow_unused=True, materialize_grads=True)
        found[name] = dict(zip(leaves, gradients, strict=True))
    for key, expected in found["reference"].items():
        error = (found["native"][key].double() - expected).abs().max() / expected.abs().max().clamp_min(1e-6)
        assert error <= 1e-5, (key, error)


def test_mistakes_are_named() -> None:
    arguments = plain(ADDING)
    with pytest.raises(ValueError, match="level_scale must have shape"):
        ops.log_linear(**arguments | {"level_scale": arguments["level_scale"][:, :3]})
    with pytest.raises(ValueError, match="is it the state of another layer"):
        ops.log_linear(**arguments, state=(torch.zeros(3, 2, 2, 3, 4), torch.zeros(3, dtype=torch.long)))
    with pytest.raises(ValueError, match="log_linear has no notion of elapsed time"):
        ops.log_linear(**arguments | {"timeline": Timeline(interval=torch.ones(3, 139))})


def test_the_count_of_positions_may_be_of_any_integer_type() -> None:
    inputs = make(CASES[0])
    _, (levels, position) = ops.log_linear(**inputs, return_state=True)
    expected = ops.log_linear(**inputs, state=(levels, position))
    assert torch.equal(ops.log_linear(**inputs, state=(levels, position.int())), expected)
