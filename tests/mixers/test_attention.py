"""Attention against a dense softmax, the released layers' numbers, and the cache's promises that the laws do not reach."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from statescan import Timeline
from statescan.mixers import Attention, AttentionState, GrowingAttentionState, sight


def dense(layer: Attention, x: Tensor, window: int | None = None) -> Tensor:
    """The formula on one plain sequence, every product formed."""
    batch, length = x.shape[:2]
    q, k, v = (proj(x).view(batch, length, -1, layer.head_dim) for proj in (layer.q_proj, layer.k_proj, layer.v_proj))
    half = layer.head_dim // 2
    angle = torch.arange(length).double().outer(layer.rotary_base ** (-torch.arange(half).double() / half))
    turn = torch.polar(torch.ones_like(angle), angle).unsqueeze(1)
    q, k = (torch.view_as_real(torch.complex(t[..., :half], t[..., half:]) * turn).transpose(-1, -2).flatten(-2) for t in (q, k))
    k, v = (t.repeat_interleave(layer.num_heads // layer.num_kv_heads, 2) for t in (k, v))
    distance = torch.arange(length).unsqueeze(1) - torch.arange(length)
    hidden = (distance < 0) | (distance >= (window or length))
    scores = (torch.einsum("bthp,bshp->bhts", q, k) * layer.head_dim**-0.5).masked_fill(hidden, float("-inf"))
    return layer.o_proj(torch.einsum("bhts,bshp->bthp", scores.softmax(-1), v).flatten(2))


@pytest.mark.parametrize("window", [None, 1, 5])
@pytest.mark.parametrize("block", [1024, 4])
def test_it_is_a_softmax_over_what_is_seen(window: int | None, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sight, "BLOCK", block)
    layer = Attention(16, 4, 2, window=window).double()
    x = torch.randn(2, 13, 16, dtype=torch.float64)
    torch.testing.assert_close(layer(x), dense(layer, x, window), atol=1e-12, rtol=0)
    y, state = layer.scan(x[:, :6])
    rest, _ = layer.scan(x[:, 6:], state, Timeline(mask=torch.ones(2, 7, dtype=torch.bool)))
    torch.testing.assert_close(torch.cat([y, rest], 1), dense(layer, x, window), atol=1e-12, rtol=0)


def test_a_window_reads_only_its_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sight, "BLOCK", 8)
    sizes: list[tuple[int, int]] = []
    kernel = F.scaled_dot_product_attention

    def watched(q: Tensor, k: Tensor, *args: object, **options: object) -> Tensor:
        sizes.append((q.shape[2], k.shape[2]))
        return kernel(q, k, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    Attention(16, 2, window=4)(torch.randn(1, 30, 16), Timeline(mask=torch.arange(30).unsqueeze(0) % 3 > 0))
    assert sizes == [(8, 8), (8, 11), (8, 11), (6, 9)]


def test_holes_do_not_count_for_the_window_or_the_positions() -> None:
    layer = Attention(16, 2, window=3).double()
    x, mask = torch.randn(1, 20, 16, dtype=torch.float64), torch.arange(20).unsqueeze(0) % 3 > 0
    torch.testing.assert_close(layer(x, Timeline(mask=mask))[mask].unsqueeze(0), dense(layer, x[:, mask[0]], 3), atol=1e-12, rtol=0)


def test_a_growing_cache_equals_a_large_one_and_a_full_one_says_so() -> None:
    layer = Attention(16, 2, qk_norm=True).eval()
    x = torch.randn(2, 9, 16)
    line = Timeline(reset=torch.rand(2, 9) < 0.2, mask=torch.rand(2, 9) < 0.7)
    grown, fixed = layer.init_state(2), layer.init_state(2, capacity=9)
    assert isinstance(grown, GrowingAttentionState)
    assert isinstance(fixed, AttentionState)
    whole = layer(x, line)
    for t in range(9):
        a, grown = layer.step(x[:, t], grown, line.at(t))
        b, fixed = layer.step(x[:, t], fixed, line.at(t))
        torch.testing.assert_close(a, whole[:, t])
        torch.testing.assert_close(b, whole[:, t])
    for name in AttentionState._fields:
        torch.testing.assert_close(getattr(grown, name), getattr(fixed, name))
    with pytest.raises(ValueError, match="the cache holds 9 positions and a row has"):
        layer.scan(x, fixed)
    layer.scan(x, fixed, Timeline(reset=torch.arange(9).expand(2, -1) == 0))  # a reset makes room


def test_differential_attention_without_difference_is_the_first_map() -> None:
    layer = Attention(32, 4, 2, rotary_base=None, lambda_init=0.0).double()
    for name in layer.difference.dynamics:
        torch.nn.init.zeros_(getattr(layer.difference, name))
    x = torch.randn(2, 7, 32, dtype=torch.float64)
    q, k, v = (proj(x).unflatten(-1, (-1, 8)).transpose(1, 2) for proj in (layer.q_proj, layer.k_proj, layer.v_proj))
    both = [F.scaled_dot_product_attention(q[:, ::2], k[:, :1].expand(-1, 2, -1, -1), v[:, i : i + 1], is_causal=True) for i in (0, 1)]
    expected = layer.o_proj(layer.difference.subln(torch.cat(both, -1)).transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(x), expected)


def test_published_counts() -> None:
    with torch.device("meta"):
        gated = Attention(2048, 16, 2, head_dim=256, rotary_dim=64, qk_norm=True, gate=True)  # Qwen3-Next
    assert sum(p.numel() for p in gated.parameters()) == 27_263_488


def test_it_equals_the_released_layer() -> None:
    """LFM2's attention: grouped heads, norms of queries and keys, rotary positions."""
    lfm2 = pytest.importorskip("transformers.models.lfm2.modeling_lfm2")
    config = lfm2.Lfm2Config(
        hidden_size=32, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=1, layer_types=["full_attention"]
    )
    config._attn_implementation = "eager"
    theirs = lfm2.Lfm2Attention(config, 0).eval()
    ours = Attention(32, 4, 2, qk_norm=True, norm_eps=config.norm_eps, rotary_base=config.rope_parameters["rope_theta"]).eval()
    names = {"out_proj": "o_proj", "q_layernorm": "q_norm", "k_layernorm": "k_norm"}
    for name, parameter in theirs.named_parameters():
        torch.nn.init.normal_(parameter, std=0.3)
        module, field = name.split(".")
        getattr(ours.get_submodule(names.get(module, module)), field).data.copy_(parameter.data)
    x, position = torch.randn(2, 11, 32), torch.arange(11).unsqueeze(0)
    hidden = torch.full((11, 11), float("-inf")).triu(1)[None, None]
    expected = theirs(x, lfm2.Lfm2RotaryEmbedding(config)(x, position), hidden)[0]
    torch.testing.assert_close(ours(x), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 3}, "num_heads must divide"),
        ({"num_heads": 4, "num_kv_heads": 3}, "num_kv_heads must divide"),
        ({"num_heads": 4, "window": 4, "capacity": 9}, "leave capacity out"),
        ({"num_heads": 4, "window": 0}, "window must be positive"),
        ({"num_heads": 4, "rotary_dim": 3}, "rotary_dim must be even"),
        ({"num_heads": 2, "num_kv_heads": 1, "lambda_init": 0.2}, "pairs heads"),
    ],
)
def test_mistakes_are_named(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Attention(16, **arguments)
