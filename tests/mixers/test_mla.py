"""Multi-head latent attention against Kimi-Linear's layer and a dense softmax, and what its cache holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from statescan import Timeline
from statescan import state as states
from statescan.layers.rotary import rotate
from statescan.mixers import Attention
from statescan.mixers.mla import GrowingLatentState, LatentState, MultiheadLatentAttention
from statescan.testing.run import stir

SIZES = {"num_heads": 3, "kv_rank": 10, "nope_dim": 6, "rope_dim": 4, "value_dim": 5}


@pytest.mark.parametrize(("q_rank", "bias"), [(None, False), (7, True)])
def test_it_equals_the_released_layer(q_rank: int | None, bias: bool) -> None:
    kimi = pytest.importorskip("transformers.models.kimi_linear.modeling_kimi_linear")
    config = kimi.KimiLinearConfig(
        hidden_size=24, num_attention_heads=3, num_key_value_heads=3, kv_lora_rank=10, q_lora_rank=q_rank, qk_nope_head_dim=6,
        qk_rope_head_dim=4, v_head_dim=5, attention_bias=bias,
    )  # fmt: skip
    config._attn_implementation = "eager"
    theirs = stir(kimi.KimiLinearAttention(config, 0), scale=0.3).eval()
    ours = MultiheadLatentAttention(24, **SIZES, q_rank=q_rank, bias=bias).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 11, 24)
    hidden = torch.full((11, 11), float("-inf")).triu(1)[None, None]
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x, hidden)[0], atol=1e-5, rtol=1e-5)


def test_only_the_shared_part_turns() -> None:
    torch.manual_seed(0)
    layer = stir(MultiheadLatentAttention(16, **SIZES, rotary_base=50.0), scale=0.3).double()
    x, position = torch.randn(2, 9, 16, dtype=torch.float64), torch.arange(9).expand(2, -1)
    q = layer.q_proj(x).view(2, 9, 3, 10)
    latent, shared = layer.kv_a_proj_with_mqa(x).split([10, 4], -1)
    own, v = layer.kv_b_proj(layer.kv_a_layernorm(latent)).view(2, 9, 3, 11).split([6, 5], -1)
    q_turned, k_turned = (rotate(t, position, 50.0, 4) for t in (q[..., 6:], shared.unsqueeze(2)))
    scores = torch.einsum("bthp,bshp->bhts", q[..., :6], own) + torch.einsum("bthp,bsp->bhts", q_turned, k_turned.squeeze(2))
    scores = (scores * 10**-0.5).masked_fill(torch.ones(9, 9, dtype=torch.bool).triu(1), float("-inf"))
    expected = layer.o_proj(torch.einsum("bhts,bshp->bthp", scores.softmax(-1), v).flatten(2))
    torch.testing.assert_close(layer(x), expected, atol=1e-12, rtol=0)


def test_the_cache_holds_latents_only() -> None:
    layer = MultiheadLatentAttention(24, **SIZES)
    state = layer.init_state(2, capacity=20)
    assert isinstance(state, LatentState)
    assert state.latents.shape == (2, 20, 1, 14)
    assert isinstance(layer.init_state(2), GrowingLatentState)
    assert 3 * states.nbytes(state) < states.nbytes(Attention(24, 3, head_dim=10).init_state(2, capacity=20)) * 2


def test_a_growing_cache_equals_a_large_one_and_a_full_one_says_so() -> None:
    layer = stir(MultiheadLatentAttention(24, **SIZES, rotary_base=100.0)).eval()
    x, line = torch.randn(2, 9, 24), Timeline(torch.rand(2, 9) < 0.2, torch.rand(2, 9) < 0.7)
    grown, fixed = layer.init_state(2), layer.init_state(2, capacity=9)
    whole = layer(x, line)
    for t in range(9):
        a, grown = layer.step(x[:, t], grown, line.at(t))
        b, fixed = layer.step(x[:, t], fixed, line.at(t))
        torch.testing.assert_close(a, whole[:, t])
        torch.testing.assert_close(b, whole[:, t])
    torch.testing.assert_close(tuple(grown), tuple(fixed))
    with pytest.raises(ValueError, match="the cache holds 9 positions"):
        layer.scan(torch.randn(2, 10, 24), layer.init_state(2, capacity=9))


@pytest.mark.parametrize("arguments", [{"rope_dim": 3, "rotary_base": 10.0}, {"rope_dim": 0, "rotary_base": 10.0}, {"rope_dim": -2}])
def test_mistakes_are_named(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="rope_dim must be even"):
        MultiheadLatentAttention(16, **{**SIZES, **arguments})
