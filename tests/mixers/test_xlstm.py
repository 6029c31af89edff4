"""xLSTM's layers: transformers' layer and model, the original blocks written out, published counts and initial values."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan import Spec
from statescan.heads import LanguageModel
from statescan.layers import GatedMLP
from statescan.mixers import MLSTM, SLSTM, MLSTMBlock


def data(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shaken(layer: Any, scale: float = 0.3) -> Any:
    """In float64, with noise on every parameter."""
    layer = layer.double()
    with torch.no_grad():
        for seed, parameter in enumerate(layer.parameters()):
            parameter.add_(scale * data(*parameter.shape, seed=seed))
    return layer


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("bias", [False, True])
def test_mlstm_equals_transformers(bias: bool) -> None:
    module: Any = pytest.importorskip("transformers.models.xlstm.modeling_xlstm")
    config = module.xLSTMConfig(hidden_size=24, num_hidden_layers=1, num_heads=3, qk_dim_factor=0.75, gate_soft_cap=4.0, use_bias=bias)
    theirs = module.xLSTMLayer(config).eval()
    ours = shaken(MLSTM(24, 3, 0.75, gate_soft_cap=4.0, igate_bias_init=1.0, use_bias=bias)).float()
    theirs.load_state_dict(ours.state_dict())
    x = data(2, 71, 24).float()
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x)[0], atol=1e-5, rtol=1e-4)


def test_language_model_equals_transformers() -> None:
    """Full forward passes: the cache there has other sizes than the layer, unless the key width divides by 64."""
    module: Any = pytest.importorskip("transformers.models.xlstm.modeling_xlstm")
    config = module.xLSTMConfig(vocab_size=31, hidden_size=128, num_hidden_layers=2, num_heads=2, use_cache=False)
    theirs = module.xLSTMForCausalLM(config).eval()
    parts = {"X": Spec(MLSTM, num_heads=2), "F": Spec(GatedMLP, d_ff=384)}
    ours = LanguageModel(31, 128, "(XF)*2", parts, norm_eps=1e-6, tie_embeddings=False, logit_cap=30.0).eval()
    for seed, parameter in enumerate(ours.parameters()):
        nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(seed))
    renamed = [
        ("embedding.", "embeddings."), ("norm_f.", "out_norm."), ("gate_proj.", "proj_up_gate."), (".up_proj.", ".proj_up."),
        ("down_proj.", "proj_down."),
    ]  # fmt: skip
    for i in range(2):
        for j, (norm, part) in enumerate((("norm_mlstm.", "mlstm_layer."), ("norm_ffn.", "ffn."))):
            renamed += [(f"layers.{2 * i + j}.norm.", f"blocks.{i}.{norm}"), (f"layers.{2 * i + j}.mixer.", f"blocks.{i}.{part}")]
    weights = {
        functools.reduce(lambda name, pair: name.replace(*pair), renamed, name): tensor for name, tensor in ours.state_dict().items()
    }
    theirs.load_state_dict(weights)
    ids = torch.randint(0, 31, (3, 75), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, got = theirs(ids).logits, ours(ids)
    assert expected.std() > 0.3
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


def headwise_norm(x: Tensor, heads: int, weight: Tensor) -> Tensor:
    return F.group_norm(x.flatten(0, 1), heads, 1 + weight, eps=1e-5).view(x.shape)


def convolved(x: Tensor, conv: Any) -> Tensor:
    width, _, taps = conv.weight.shape
    y = F.conv1d(F.pad(x.transpose(1, 2), (taps - 1, 0)), conv.weight, conv.bias, groups=width)
    return F.silu(y).transpose(1, 2)


def test_mlstm_block_is_the_published_one() -> None:
    layer = shaken(MLSTMBlock(12, 2, round_proj_up_to_multiple_of=8, igate_bias_init=2.0))
    x = data(2, 40, 12)
    u, z = (x @ layer.proj_up.weight.T).split(24, dim=-1)
    c = convolved(u, layer.conv1d)
    q, k, v = (
        source @ torch.block_diag(*proj.weight).T
        for source, proj in ((c, layer.q_proj), (c, layer.k_proj), (u, layer.v_proj))
    )  # fmt: skip
    together = torch.cat([q, k, v], -1)
    i, lf = layer.mlstm_cell.igate(together).transpose(1, 2), F.logsigmoid(layer.mlstm_cell.fgate(together)).transpose(1, 2)
    q, k, v = (t.unflatten(-1, (2, 12)).transpose(1, 2) for t in (q, k, v))
    total = lf.cumsum(-1)
    logs = (total.unsqueeze(-1) - total.unsqueeze(-2) + i.unsqueeze(-2)).masked_fill(torch.ones(40, 40).triu(1).bool(), float("-inf"))
    m = torch.maximum(logs.amax(-1, keepdim=True), total.unsqueeze(-1))  # the state begins with m = 0
    scores = q @ k.mT / 12**0.5 * (logs - m).exp()
    h = scores @ v / (torch.maximum(scores.sum(-1, keepdim=True).abs(), (-m).exp()) + 1e-6)
    h = headwise_norm(h.transpose(1, 2).flatten(-2), 2, layer.mlstm_cell.outnorm.weight)
    expected = ((h + layer.learnable_skip * c) * F.silu(z)) @ layer.proj_down.weight.T
    torch.testing.assert_close(layer(x), expected, atol=1e-10, rtol=1e-10)


def test_slstm_is_the_published_one_with_its_swapped_names() -> None:
    layer = shaken(SLSTM(6, 2))
    x = data(2, 15, 6)
    c = convolved(x, layer.conv1d)
    into = {"i": (c, layer.fgate), "f": (c, layer.igate), "z": (x, layer.zgate), "o": (x, layer.ogate)}
    bias = dict(zip("ifzo", layer.slstm_cell._bias_.view(4, 6), strict=True))
    blocks = layer.slstm_cell._recurrent_kernel_.view(2, 4, 3, 3)
    R = {name: torch.block_diag(*blocks[:, g]) for g, name in enumerate("ifzo")}
    h = cell = n = torch.zeros(2, 6, dtype=torch.float64)
    outputs = []
    for t in range(15):
        g = {name: source[:, t] @ torch.block_diag(*W.weight).T + h @ R[name].T + bias[name] for name, (source, W) in into.items()}
        cell = g["f"].sigmoid() * cell + g["i"].exp() * g["z"].tanh()
        n = g["f"].sigmoid() * n + g["i"].exp()
        h = g["o"].sigmoid() * cell / n
        outputs.append(h)
    expected = headwise_norm(torch.stack(outputs, 1), 2, layer.group_norm.weight)
    torch.testing.assert_close(layer(x), expected, atol=1e-10, rtol=1e-10)


def test_counts() -> None:
    """The published block, two embeddings of three symbols and the norms make the counts of the parity models (see the models)."""
    assert count(MLSTMBlock(64, 1)) + 64 == 27_842
    assert count(SLSTM(64, 1)) + 2 * 64 + 3 * 64 * 128 == 58_112


def test_gates_at_first() -> None:
    large, block, first, last = MLSTM(64), MLSTMBlock(64), SLSTM(64, 2), SLSTM(64, 2, depth=1.0)
    for igate, fgate in ((large.igate_preact, large.fgate_preact), (block.mlstm_cell.igate, block.mlstm_cell.fgate)):
        assert not igate.weight.any()
        assert not fgate.weight.any()
        assert torch.equal(fgate.bias, torch.linspace(3.0, 6.0, fgate.out_features))
    assert torch.equal(large.igate_preact.bias, torch.full((8,), -10.0))
    place = torch.arange(32) / 31
    for layer, exponent in ((first, 0.3), (last, 1.6)):
        i, f, z, o = layer.slstm_cell._bias_.view(4, 2, 32)
        torch.testing.assert_close(f, (5 - 12 * place**exponent).expand(2, 32))
        assert not torch.stack([i, z, o]).any()
        assert not layer.slstm_cell._recurrent_kernel_.any()


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"qk_dim_factor \* d_model must be a multiple of the heads; got qk_dim_factor=0.5, d_model=30"):
        MLSTM(30, 2)
    with pytest.raises(ValueError, match="gate_soft_cap must be positive; got -1"):
        MLSTM(32, 2, gate_soft_cap=-1.0)
    with pytest.raises(ValueError, match="num_heads must divide the inner width; got 3 and 64"):
        MLSTMBlock(32, 3)
    with pytest.raises(ValueError, match="qkv_proj_blocksize must divide the inner width; got 5 and 64"):
        MLSTMBlock(32, 2, qkv_proj_blocksize=5)
    with pytest.raises(ValueError, match="num_heads must divide d_model; got 3 and 32"):
        SLSTM(32, 3)
    with pytest.raises(ValueError, match="depth lies between 0"):
        SLSTM(32, depth=2.0)
