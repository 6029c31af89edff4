"""What linear attention and the delta rule promise beside agreeing with their references: identities, chunks, compilers, extremes."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from statescan.ops import delta_rule, linear_attention, ssd
from statescan.ops.dispatch import implementation
from statescan.timeline import Timeline

OPS = {"linear_attention": linear_attention, "delta_rule": delta_rule}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(length: int = 70, heads: int = 2, keys: int = 5, width: int = 4, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, unit k, v and beta in (0, 2)."""
    q, k, v = (
        draw(2, length, heads, keys, seed=seed),
        draw(2, length, heads, keys, seed=seed + 1),
        draw(2, length, heads, width, seed=seed + 2),
    )
    return q, F.normalize(k, dim=-1), v, 2 * torch.sigmoid(draw(2, length, heads, seed=seed + 3))


def close(got: Any, expected: Any, tolerance: float = 1e-11) -> None:
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)


def test_scalar_decay_is_ssd() -> None:
    x, delta, A = draw(2, 70, 4, 3), F.softplus(draw(2, 70, 4, seed=1)), -draw(4, seed=2).exp()
    B, C = draw(2, 70, 2, 5, seed=3), draw(2, 70, 2, 5, seed=4)
    got = linear_attention(C, B, delta.unsqueeze(-1) * x, delta * A, scale=1.0)
    close(got, ssd(x, delta, A, B, C))


def test_a_decay_equal_over_channels_is_a_scalar_one() -> None:
    q, k, v, beta = inputs()
    g = -F.softplus(draw(2, 70, 2, seed=9))
    for op, extra in ((linear_attention, ()), (delta_rule, (beta,))):
        close(op(q, k, v, *extra, g), op(q, k, v, *extra, g.unsqueeze(-1).expand_as(q)))


def test_no_decay_is_a_decay_of_zero() -> None:
    q, k, v, beta = inputs()
    zero = torch.zeros(2, dtype=torch.float64)
    close(linear_attention(q, k, v), linear_attention(q, k, v, zero))
    close(delta_rule(q, k, v, beta), delta_rule(q, k, v, beta, zero))


def test_linear_attention_is_its_parallel_form() -> None:
    q, k, v, _ = inputs()
    g = torch.tensor([-0.2, -0.01], dtype=torch.float64)
    t = torch.arange(70, dtype=torch.float64)
    weight = torch.exp(g[:, None, None] * (t[:, None] - t)).tril()
    expected = (torch.einsum("blhk,bmhk->bhlm", q, k) * weight) @ v.transpose(1, 2) / 5**0.5
    close(linear_attention(q, k, v, g), expected.transpose(1, 2))


def test_several_writes_are_a_longer_sequence() -> None:
    first, second = inputs(), inputs(seed=20)
    g = -F.softplus(draw(2, 70, 2, 5, seed=9))
    q = first[0]
    both = [torch.stack(pair, dim=2) for pair in zip(first[1:], second[1:], strict=True)]
    k, v, beta = (t.flatten(1, 2) for t in both)
    long = torch.stack([torch.zeros_like(q), q], dim=2).flatten(1, 2)
    decay = torch.stack([g, torch.zeros_like(g)], dim=2).flatten(1, 2)
    close(delta_rule(q, *both, g), delta_rule(long, k, v, beta, decay)[:, 1::2])


def test_low_rank_form_covers_the_delta_rule_and_gated_linear_attention() -> None:
    q, k, v, beta = inputs()
    g = -F.softplus(draw(2, 70, 2, 5, seed=9))
    scaled, zero = beta.unsqueeze(-1) * k, torch.zeros_like(k)
    keys, values = torch.stack([scaled, k], 2), torch.stack([torch.zeros_like(v), beta.unsqueeze(-1) * v], 2)
    close(delta_rule(q, keys, values, None, g, read=torch.stack([g.exp() * k, zero], 2)), delta_rule(q, k, v, beta, g))
    close(delta_rule(q, k, v, None, g, read=zero), linear_attention(q, k, v, g))


def test_two_reflections_are_a_rotation() -> None:
    angle = torch.tensor(0.3, dtype=torch.float64)
    a = torch.tensor([1.0, 0.0], dtype=torch.float64)
    b = torch.stack([angle.cos(), angle.sin()])
    k = torch.stack([a, b]).view(1, 1, 2, 1, 2)
    identity = torch.eye(2, dtype=torch.float64).view(1, 1, 2, 2)
    zeros, twos = k.new_zeros(1, 1, 2, 1, 2), k.new_full((1, 1, 2, 1), 2.0)
    _, s = delta_rule(k[:, :, 0], k, zeros, twos, state=identity, return_state=True)
    twice = 2 * angle
    close(s[0, 0], torch.stack([torch.stack([twice.cos(), -twice.sin()]), torch.stack([twice.sin(), twice.cos()])]))


def test_parity_is_tracked_exactly() -> None:
    bits = torch.rand(1, 200, 1, generator=torch.Generator().manual_seed(3)) < 0.5
    k = torch.tensor([1.0, 0.0]).expand(1, 200, 1, 2)
    y = delta_rule(k, k, torch.zeros(1, 200, 1, 1), 2.0 * bits, scale=1.0, state=torch.ones(1, 1, 2, 1))
    assert torch.equal(y[..., 0], 1 - 2.0 * (bits.cumsum(1) % 2))  # type: ignore[union-attr, call-overload]


@pytest.mark.parametrize("vector", [False, True])
def test_strong_decay_stays_finite_and_right_in_single_precision(vector: bool) -> None:
    q, k, v, beta = (t.float().requires_grad_() for t in inputs(length=256))
    g = torch.full((2, 256, 2, 5) if vector else (2, 256, 2), -5.0, requires_grad=True)
    wide = [t.detach().double() for t in (q, k, v, beta, g)]
    for op, extra in ((linear_attention, ()), (delta_rule, (3,))):
        got = op(q, k, v, *(beta for _ in extra), g)
        with implementation("reference"):
            expected = op(*wide[:3], *(wide[i] for i in extra), wide[4])
        close(got.double(), expected, 1e-5)  # type: ignore[union-attr]
        gradients = torch.autograd.grad(got.square().sum(), (q, k, v, g))  # type: ignore[union-attr]
        assert all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("name", list(OPS))
@pytest.mark.parametrize("split", [1, 29, 64])
def test_a_state_continues_where_it_stopped(name: str, split: int) -> None:
    module = importlib.import_module(f"statescan.ops.{name}.cases")
    arguments = module.make(module.CASES[-1], torch.float64)
    whole, last = OPS[name](**arguments)
    line, state, outputs = arguments.pop("timeline"), arguments.pop("state"), []
    for start, stop in ((0, split), (split, whole.shape[1])):
        parts = {n: t[:, start:stop] if isinstance(t, Tensor) else t for n, t in arguments.items()}
        y, state = OPS[name](**parts, state=state, timeline=line.slice(start, stop))
        outputs.append(y)
    close(torch.cat(outputs, 1), whole)
    close(state, last)


@pytest.mark.parametrize("name", list(OPS))
def test_compiles_once_for_every_length(name: str) -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter, counts = CompileCounterWithBackend("aot_eager"), []

    def call(q: Tensor, k: Tensor, v: Tensor, extra: list[Tensor], g: Tensor, reset: Tensor) -> Any:
        return OPS[name](q, k, v, *extra, g, timeline=Timeline(reset), return_state=True)

    compiled = torch.compile(call, backend=counter, fullgraph=True, dynamic=True)
    for length in (37, 64, 131):
        q, k, v, beta = inputs(length=length)
        arguments = (q.requires_grad_(), k, v, [beta] if name == "delta_rule" else [], -draw(2, length, 2, 5, seed=8).exp())
        reset = torch.arange(length).remainder(11).eq(7).expand(2, length)
        got, expected = compiled(*arguments, reset), call(*arguments, reset)
        close(got, expected)
        close(torch.autograd.grad(got[0].sum() + got[1].sum(), q), torch.autograd.grad(expected[0].sum() + expected[1].sum(), q))
        counts.append(counter.frame_count)
    assert counts == [1, 1, 1], "another length was compiled anew"


@pytest.mark.parametrize("name", list(OPS))
def test_training_keeps_no_state_a_position(name: str) -> None:
    length, heads, keys, width = 1024, 1, 64, 64
    q, k, v = (torch.randn(1, length, heads, keys, requires_grad=True) for _ in range(3))
    extra = (torch.rand(1, length, heads),) if name == "delta_rule" else ()
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 4
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        y = OPS[name](q, F.normalize(k, dim=-1), v, *extra, -torch.rand(1, length, heads, keys))
    assert y is not None
    assert max(kept.values()) < length * heads * keys * width / 16
    assert 0 < sum(kept.values()) < 0.7 * length * heads * keys * width


WRONG = [
    ("linear_attention", {"v": (2, 5, 4)}, r"v must have shape \(B, L, H, V\); got \(2, 5, 4\)"),
    ("linear_attention", {"q": (2, 5, 3, 3), "k": (2, 5, 3, 3)}, "q has 3 groups, which do not divide 4"),
    ("linear_attention", {"k": (2, 5, 4, 3)}, "q and k must have the same groups; got"),
    ("linear_attention", {"log_decay": (3,)}, r"log_decay must have shape \(4\); got \(3,\)"),
    ("linear_attention", {"log_decay": (2, 5, 4, 2)}, r"log_decay must have shape \(2, 5, 4, 3\); got \(2, 5, 4, 2\)"),
    ("linear_attention", {"state": (2, 4, 2, 3)}, r"state must have shape \(2, 4, 3, 2\); got \(2, 4, 2, 3\)"),
    ("delta_rule", {"beta": (2, 5, 2)}, r"beta must have shape \(2, 5, 1, 4\); got \(2, 5, 1, 2\)"),
    ("delta_rule", {"beta": None}, "takes beta .* or read .*, and not both"),
    ("delta_rule", {"read": (2, 5, 4, 3)}, "takes beta .* or read .*, and not both"),
    ("delta_rule", {"k": (2, 5, 2, 2, 3)}, r"k must have shape \(2, 5, 1, 2, 3\); got \(2, 5, 2, 2, 3\)"),
]


@pytest.mark.parametrize(("name", "changes", "message"), WRONG)
def test_wrong_shape(name: str, changes: dict[str, Any], message: str) -> None:
    shapes: dict[str, Any] = {"q": (2, 5, 2, 3), "k": (2, 5, 2, 3), "v": (2, 5, 4, 2)}
    shapes |= {"beta": (2, 5, 4)} if name == "delta_rule" else {}
    arguments = {n: None if shape is None else torch.rand(shape) for n, shape in (shapes | changes).items()}
    with pytest.raises(ValueError, match=message):
        OPS[name](**arguments)


@pytest.mark.parametrize("name", list(OPS))
def test_no_notion_of_elapsed_time(name: str) -> None:
    q, k, v, beta = inputs()
    with pytest.raises(ValueError, match="no notion of elapsed time"):
        OPS[name](q, k, v, *((beta,) if name == "delta_rule" else ()), timeline=Timeline(interval=torch.ones(2, 70)))
