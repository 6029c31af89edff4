"""Layers that read what a layer below left on the bus: all laws inside a backbone, and the promises of the cards."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from statescan import Spec, Timeline
from statescan import state as states
from statescan.backbones import FlatBackbone, FlatState
from statescan.mixers import Attention, CrossAttention, GatedMemoryUnit, Mamba, Mamba2
from statescan.testing import LAWS, Report, Subject
from statescan.testing.run import stir

HEADS = {"num_heads": 4, "num_kv_heads": 2}
MEMORY = {"M": Spec(Mamba, d_state=4, share="memory"), "G": Spec(GatedMemoryUnit, source="memory", d_inner=64)}
PATTERNS: dict[str, tuple[str, dict[str, Spec[Any]]]] = {
    "memory": ("MG", MEMORY),
    "memory of heads": (
        "MG",
        {
            "M": Spec(Mamba2, d_state=4, headdim=16, d_ssm=48, share="memory"),
            "G": Spec(GatedMemoryUnit, source="memory", d_inner=48, norm=True),
        },
    ),
    "keys": (
        "AC",
        {
            "A": Spec(Attention, **HEADS, capacity=48, share="kv", rotary_dim=4),
            "C": Spec(CrossAttention, source="kv", **HEADS, bias=True, out_bias=True),
        },
    ),
    "window": (
        "AC",
        {
            "A": Spec(Attention, **HEADS, window=7, share="kv", lambda_init=0.3, rotary_base=None),
            "C": Spec(CrossAttention, source="kv", **HEADS, lambda_init=0.4),
        },
    ),
}


def built(case: str) -> FlatBackbone:
    torch.manual_seed(0)
    pattern, parts = PATTERNS[case]
    return stir(FlatBackbone(32, pattern, parts)).eval()


@functools.cache
def subject(case: str) -> Subject:
    return Subject(case, built(case), width=32)


SLOW = [(case, law) for case in PATTERNS for law in (6, 8)]


@pytest.mark.parametrize(
    ("case", "law"),
    [pytest.param(*pair, marks=pytest.mark.full if pair in SLOW else ()) for pair in itertools.product(PATTERNS, LAWS)],
)
def test_law(case: str, law: int) -> None:
    report = Report(case)
    LAWS[law](subject(case), report, *subject(case).modes())
    print(report)
    report.raise_if_failed()


def test_one_cache_however_many_layers_read_it() -> None:
    def size(pattern: str) -> int:
        return states.nbytes(FlatBackbone(32, pattern, PATTERNS["keys"][1]).init_state(2))

    assert size("A") == size("AC") == size("ACCCC") > 0
    assert states.nbytes(FlatBackbone(32, "MGGG", MEMORY).init_state(1)) == states.nbytes(Mamba(32, d_state=4).init_state(1))


def test_a_prompt_need_not_pass_the_readers() -> None:
    """Their state is empty, so the layers that share read the prompt, and the last position alone passes them all."""
    torch.manual_seed(0)
    parts = {**MEMORY, **PATTERNS["keys"][1]}
    model = stir(FlatBackbone(32, "MAGCGC", parts)).double()
    lower = FlatBackbone(32, "MA", parts, norm_f=False).double()
    lower.layers.load_state_dict(model.layers[:2].state_dict())  # type: ignore[index]
    x = torch.randn(2, 13, 32, dtype=torch.float64)
    _, state = lower.scan(x[:, :-1])
    y, _ = model.step(x[:, -1], FlatState((*state.layers, (), (), (), ())))
    torch.testing.assert_close(y, model(x)[:, -1], atol=1e-12, rtol=0)


def test_recomputed_blocks_have_the_same_gradients() -> None:
    torch.manual_seed(0)
    model = stir(FlatBackbone(32, "MAGC", {**MEMORY, **PATTERNS["keys"][1]})).double()
    x, found = torch.randn(2, 9, 32, dtype=torch.float64), []
    for model.gradient_checkpointing in (False, True):
        model.zero_grad()
        model(x).square().sum().backward()
        found.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(found[1], found[0], atol=1e-12, rtol=1e-10)


def test_a_memory_of_ones_makes_a_gated_unit() -> None:
    layer, x = GatedMemoryUnit(16, "m", 24), torch.randn(2, 5, 16)
    expected = layer.out_proj(torch.nn.functional.silu(layer.in_proj(x)))
    torch.testing.assert_close(layer(x, bus={"m": torch.ones(2, 5, 24)}), expected)


def test_a_normed_unit_is_normed_behind_the_gate() -> None:
    layer, x, memory = GatedMemoryUnit(16, "m", 24, norm=True, norm_eps=0.5), torch.randn(2, 5, 16), torch.randn(2, 5, 24)
    gated = memory * torch.nn.functional.silu(layer.in_proj(x))
    expected = layer.out_proj(gated / (gated.square().mean(-1, keepdim=True) + 0.5).sqrt())
    torch.testing.assert_close(layer(x, bus={"m": memory}), expected)


@pytest.mark.parametrize("arguments", [{}, {"rotary_base": None}, {"window": 4}, {"lambda_init": 0.2, "rotary_dim": 4}])
def test_queries_of_the_sharing_layer_give_its_output(arguments: dict[str, Any]) -> None:
    """With the same queries and output, reading over the bus is the sharing layer itself."""
    torch.manual_seed(0)
    sharing = stir(Attention(32, **HEADS, share="kv", **arguments)).double()
    reading = CrossAttention(32, source="kv", **HEADS, lambda_init=arguments.get("lambda_init")).double()
    kept = {name: tensor for name, tensor in sharing.state_dict().items() if not name.startswith(("k_proj", "v_proj"))}
    reading.load_state_dict(kept)
    x = torch.randn(2, 11, 32, dtype=torch.float64)
    line = Timeline(torch.rand(2, 11) < 0.2, torch.rand(2, 11) < 0.7)
    _, state = sharing.scan(x)
    bus: dict[str, Any] = {}
    expected = sharing(x, line, state=state, bus=bus)
    torch.testing.assert_close(reading(x, line, bus=bus), expected, atol=1e-12, rtol=0)


def test_the_layer_below_is_needed() -> None:
    x = torch.randn(1, 3, 32)
    with pytest.raises(ValueError, match=r"reads \['memory'\], which no layer before it writes"):
        FlatBackbone(32, "GM", MEMORY)
    with pytest.raises(ValueError, match="put a Mamba or Mamba2 with share='memory' before it"):
        GatedMemoryUnit(32, "memory", 64)(x, bus={})
    with pytest.raises(ValueError, match="must have shape"):
        GatedMemoryUnit(32, "memory", 64)(x, bus={"memory": torch.zeros(1, 3, 32)})
    cross, bus = CrossAttention(32, 4, "kv"), dict[str, Tensor]()
    with pytest.raises(ValueError, match="put an Attention with share='kv' before it"):
        cross(x, bus=bus)
    Attention(32, 4, 2, share="kv")(x, bus=bus)
    with pytest.raises(ValueError, match=r"expects keys of \(4, 8\)"):
        cross(x, bus=bus)
