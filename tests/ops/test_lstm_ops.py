"""What the matrix and the scalar LSTM promise beside agreeing with their references: closed forms, invariances, extremes, memory."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from statescan.ops import linear_attention, mlstm, slstm
from statescan.ops.dispatch import implementation
from statescan.timeline import Timeline

OPS: dict[str, Any] = {"mlstm": mlstm, "slstm": slstm}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(length: int = 150, heads: int = 2, keys: int = 5, width: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """q, k, v, i_raw, f_raw; queries and keys are positive, so that the sum of weights does not cancel."""
    q, k = draw(2, length, heads, keys).abs() + 0.1, draw(2, length, heads, keys, seed=1).abs() + 0.1
    return q, k, draw(2, length, heads, width, seed=2), draw(2, length, heads, seed=3), 2 * draw(2, length, heads, seed=4)


def close(got: Any, expected: Any, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)


def test_mlstm_is_its_parallel_form() -> None:
    q, k, v, i, f = inputs()
    k = k * torch.where(draw(2, 150, 2, 5, seed=5) > 0, 1.0, -1.0)  # now it does cancel, and the other bound counts too
    total = F.logsigmoid(f).cumsum(1).transpose(1, 2)
    weights = torch.exp(total.unsqueeze(-1) - total.unsqueeze(-2) + i.transpose(1, 2).unsqueeze(-2)).tril()
    scores = torch.einsum("blhk,bmhk->bhlm", q, k) / 5**0.5 * weights
    through = scores.sum(-1, keepdim=True).abs()
    assert (through > 1).any()
    assert (through < 1).any()
    close(mlstm(q, k, v, i, f, eps=1e-30), (scores @ v.transpose(1, 2) / through.clamp(min=1)).transpose(1, 2))


def test_a_constant_in_all_input_gates_cancels() -> None:
    q, k, v, i, f = inputs()
    base = mlstm(q, k, v, i + 10, f)
    for constant in (25.0, 60.0, 300.0):
        close(mlstm(q, k, v, i + constant, f), base, 1e-5)  # by as much as eps counts
        close(mlstm(q, k, v, i + constant, f, eps=1e-30), mlstm(q, k, v, i + 10, f, eps=1e-30))


def test_open_gates_leave_normalised_linear_attention() -> None:
    q, k, v, i, f = inputs()
    open_gates = (torch.zeros_like(i), torch.full_like(f, 60.0))
    summed = linear_attention(q, k, torch.cat([v, torch.ones_like(v[..., :1])], -1))
    close(mlstm(q, k, v, *open_gates, eps=1e-30), summed[..., :-1] / summed[..., -1:].abs().clamp(min=1))  # type: ignore[index]


@pytest.mark.parametrize("size", [50.0, 1e4])
def test_large_gates_stay_finite_and_right_in_single_precision(size: float) -> None:
    q, k, v, i, f = inputs(length=200)
    i, f = size * i.sign(), size * f.sign()
    single = [t.float().requires_grad_() for t in (q, k, v, i, f)]
    got = mlstm(*single)
    with implementation("reference"):
        close(got.double(), mlstm(*(t.detach().double() for t in single)), 1e-5)  # type: ignore[union-attr]
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(got.square().sum(), single))  # type: ignore[union-attr]


def test_scalar_cells_without_recurrence_are_explicit_exponentials() -> None:
    gates = draw(2, 20, 4, 3, 5)
    i, f, z, o = gates.unbind(2)
    c = n = torch.zeros(2, 3, 5, dtype=torch.float64)
    expected = []
    for t in range(20):
        c = f[:, t].sigmoid() * c + i[:, t].exp() * z[:, t].tanh()
        n = f[:, t].sigmoid() * n + i[:, t].exp()
        expected.append(o[:, t].sigmoid() * c / n)
    close(slstm(gates, torch.zeros(4, 3, 5, 5, dtype=torch.float64)), torch.stack(expected, 1))


@pytest.mark.parametrize("name", ["reference", "portable"])
def test_an_empty_cell_takes_what_comes(name: str) -> None:
    """However small the first input gate: the public rule m = i where n = 0, for each row by itself."""
    gates = torch.zeros(3, 6, 4, 1, 2)
    gates[:, :, 0], gates[:, :, 2] = -1000.0, draw(3, 6, 1, 2).float()
    gates.requires_grad_()
    line = Timeline(torch.tensor([[False, False, False, True, False, False]]).expand(3, 6))
    with implementation(name):
        y = slstm(gates, torch.zeros(4, 1, 2, 2), timeline=line)
    close(y[:, [0, 3]], 0.5 * gates[:, [0, 3], 2].tanh(), 1e-6)  # type: ignore[index]
    assert torch.isfinite(torch.autograd.grad(y.sum(), gates)[0]).all()  # type: ignore[union-attr]


@pytest.mark.parametrize("name", list(OPS))
@pytest.mark.parametrize("split", [1, 29, 64])
def test_a_state_continues_where_it_stopped(name: str, split: int) -> None:
    module = importlib.import_module(f"statescan.ops.{name}.cases")
    arguments = module.make(module.CASES[-1], torch.float64)
    whole, last = OPS[name](**arguments)
    line, state, outputs = arguments.pop("timeline"), arguments.pop("state"), []
    per_position = [n for n, t in arguments.items() if isinstance(t, Tensor) and t.shape[:2] == whole.shape[:2]]
    for start, stop in ((0, split), (split, whole.shape[1])):
        parts = arguments | {n: arguments[n][:, start:stop] for n in per_position}
        y, state = OPS[name](**parts, state=state, timeline=line.slice(start, stop))
        outputs.append(y)
    close(torch.cat(outputs, 1), whole)
    close(state, last)


def test_training_keeps_no_state_a_position() -> None:
    length, heads, keys, width = 1024, 1, 64, 64
    q, k, v = (torch.randn(1, length, heads, keys, requires_grad=True) for _ in range(3))
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 4
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        mlstm(q, k, v, torch.randn(1, length, heads), torch.randn(1, length, heads))
    assert max(kept.values()) < length * heads * keys * width / 16
    assert 0 < sum(kept.values()) < 0.7 * length * heads * keys * width


WRONG = [
    ("mlstm", {"v": (2, 5, 4)}, r"v must have shape \(B, L, H, V\); got \(2, 5, 4\)"),
    ("mlstm", {"q": (2, 5, 1, 3)}, r"q must have shape \(2, 5, 2, K\); got \(2, 5, 1, 3\)"),
    ("mlstm", {"k": (2, 5, 2, 4)}, r"k must have shape \(2, 5, 2, 3\); got \(2, 5, 2, 4\)"),
    ("mlstm", {"f_raw": (2, 5)}, r"f_raw must have shape \(2, 5, 2\); got \(2, 5\)"),
    ("slstm", {"gates": (2, 5, 3, 2, 3)}, r"gates must have shape \(B, L, 4, H, P\); got \(2, 5, 3, 2, 3\)"),
    ("slstm", {"R": (4, 1, 6, 6)}, r"R must have shape \(4, 2, 3, 3\); got \(4, 1, 6, 6\)"),
]
GOOD: dict[str, dict[str, tuple[int, ...]]] = {
    "mlstm": {"q": (2, 5, 2, 3), "k": (2, 5, 2, 3), "v": (2, 5, 2, 4), "i_raw": (2, 5, 2), "f_raw": (2, 5, 2)},
    "slstm": {"gates": (2, 5, 4, 2, 3), "R": (4, 2, 3, 3)},
}


@pytest.mark.parametrize(("name", "changes", "message"), WRONG)
def test_wrong_shape(name: str, changes: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OPS[name](**{n: torch.rand(shape) for n, shape in (GOOD[name] | changes).items()})


@pytest.mark.parametrize("name", list(OPS))
def test_other_mistakes_are_named(name: str) -> None:
    good = {n: torch.rand(shape) for n, shape in GOOD[name].items()}
    with pytest.raises(ValueError, match="no notion of elapsed time"):
        OPS[name](**good, timeline=Timeline(interval=torch.ones(2, 5)))
    _, state = OPS[name](**good, return_state=True)
    with pytest.raises(ValueError, match=r"state \w must have shape .*: is it the state of another layer or batch"):
        OPS[name](**good, state=tuple(part[:1].repeat_interleave(3, 0) for part in state))
