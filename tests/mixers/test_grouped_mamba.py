"""GroupedMamba between Mamba and attention."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from statescan.layers.delta import raw_steps
from statescan.mixers import Attention, GroupedMamba, Mamba


@torch.no_grad()
def seeded(attention: Attention) -> GroupedMamba:
    """x from W_v, B from W_k, C from W_q and the output from W_o; steps of one, no decay, no skip, no convolution, an open gate."""
    heads, kv_heads, size = attention.num_heads, attention.num_kv_heads, attention.head_dim
    width = attention.q_proj.in_features
    mixer = GroupedMamba(width, heads * size, kv_heads * size, size, bias=True).double()
    inner, xb = mixer.d_inner, mixer.d_xb
    mixer.in_proj.weight.copy_(
        torch.cat([torch.zeros(inner, width), attention.v_proj.weight, attention.k_proj.weight, attention.q_proj.weight])
    )
    mixer.in_proj.bias.zero_()[:inner] = 1.278464542761074  # silu of it is one
    mixer.dt_proj.weight.zero_()
    mixer.dt_proj.bias.fill_(math.log(math.e - 1))
    mixer.A_log.fill_(-math.inf)
    mixer.D.zero_()
    nn.init.zeros_(mixer.conv1d.weight)[..., -1] = 1
    nn.init.zeros_(mixer.conv1d.bias)
    mixer.conv1d.activation = None
    mixer.out_proj.weight.copy_(attention.o_proj.weight)
    mixer.out_proj.bias.zero_()
    assert mixer.in_proj.out_features == 2 * inner + 2 * xb
    return mixer


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_seeded_from_attention_it_is_linear_attention(kv_heads: int) -> None:
    """The limit of Mamba-in-the-Llama's initialisation: each query head reads the keys and values of its own group."""
    torch.manual_seed(0)
    attention = Attention(15, num_heads=6, num_kv_heads=kv_heads, head_dim=4, rotary_base=None).double()
    u = torch.randn(2, 9, 15, dtype=torch.float64)
    q, k, v = (proj(u).unflatten(-1, (-1, 4)) for proj in (attention.q_proj, attention.k_proj, attention.v_proj))
    k, v = (t.repeat_interleave(6 // kv_heads, dim=2) for t in (k, v))
    weights = torch.einsum("bthp,bshp->bhts", q, k).tril()
    expected = attention.o_proj(torch.einsum("bhts,bshp->bthp", weights, v).flatten(2))
    torch.testing.assert_close(seeded(attention)(u), expected, atol=1e-10, rtol=1e-10)


def test_with_one_head_the_scan_is_mambas() -> None:
    """What is left between them is where delta, B and C are read: from the input, not from behind the convolution."""
    torch.manual_seed(0)
    ours, theirs = GroupedMamba(8, 5, 5, 5), Mamba(8, d_state=5, expand=5 / 8)
    u = torch.randn(2, 7, 8)
    z, x, B, C = ours.heads(u)
    v, _ = ours.conv1d(x.flatten(2))
    theirs.load_state_dict({"A_log": ours.A_log, "D": ours.D}, strict=False)
    y, _ = theirs.recur(v, raw_steps(ours.dt_proj, ours.dt_in_proj(u)), B.squeeze(2), C.squeeze(2), z, None, None)
    torch.testing.assert_close(ours.out_proj(y), ours(u), atol=1e-6, rtol=0)


def test_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="d_state must divide d_xb, and d_xb d_inner; got 4, 6 and 24"):
        GroupedMamba(8, 24, 6, 4)
