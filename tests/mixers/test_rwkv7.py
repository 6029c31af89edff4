"""RWKV-7: the published counts, the recurrence written out in numpy, the value residual over the bus."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from statescan import Spec, create_model
from statescan.backbones import FlatBackbone
from statescan.mixers.rwkv7 import RWKV7ChannelMix, RWKV7TimeMix
from statescan.testing.run import stir

SIZES = [
    (12, 768, (64, 64, 32, 128), 191_034_624),
    (24, 1024, (64, 64, 32, 128), 450_767_872),
    (24, 2048, (96, 96, 64, 256), 1_527_404_544),
    (32, 2560, (96, 96, 64, 320), 2_947_735_040),
]


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("layers", "width", "ranks", "published"), SIZES)
def test_layers_add_up_to_the_published_counts(layers: int, width: int, ranks: tuple[int, int, int, int], published: int) -> None:
    with torch.device("meta"):
        first, other = (count(RWKV7TimeMix(width, 64, *ranks, first=flag)) for flag in (True, False))
        channel = count(RWKV7ChannelMix(width))
    norms = 4 * width * layers + 4 * width  # two a layer, one behind the embedding and one before the head
    assert first + (layers - 1) * other + layers * channel + norms + 2 * 65_536 * width == published


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def written_out(layer: RWKV7TimeMix, x: np.ndarray, v_first: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """One row, one position after the other, with the state as values by keys: outputs, and the values before the residual."""
    p = {name: tensor.detach().numpy().squeeze() for name, tensor in layer.state_dict().items()}
    heads, n = p["r_k"].shape
    before, s, outputs, values = np.zeros(x.shape[1]), np.zeros((heads, n, n)), [], []
    for t in range(len(x)):
        x_r, x_w, x_k, x_v, x_a, x_g = (x[t] + p[c] * (before - x[t]) for c in ("x_r", "x_w", "x_k", "x_v", "x_a", "x_g"))
        r, k, v = p["receptance.weight"] @ x_r, p["key.weight"] @ x_k, p["value.weight"] @ x_v
        values.append(v)
        if v_first is not None:
            v = v + (v_first[t] - v) * sigmoid(p["v0"] + x_v @ p["v1"] @ p["v2"])
        w = np.exp(-np.exp(-0.5) * sigmoid(p["w0"] + np.tanh(x_w @ p["w1"]) @ p["w2"]))
        a, g = sigmoid(p["a0"] + x_a @ p["a1"] @ p["a2"]), sigmoid(x_g @ p["g1"]) @ p["g2"]
        c, k = (k * p["k_k"]).reshape(heads, n), k * (1 + (a - 1) * p["k_a"])
        c = c / np.linalg.norm(c, axis=1, keepdims=True)
        r, w, k, v, a = (z.reshape(heads, n) for z in (r, w, k, v, a))
        y = np.empty((heads, n))
        for h in range(heads):
            taken = c[h] * a[h] * (2 if layer.allow_neg_eigval else 1)
            s[h] = s[h] @ (np.diag(w[h]) - np.outer(c[h], taken)) + np.outer(v[h], k[h])
            read = s[h] @ r[h]
            y[h] = (read - read.mean()) / np.sqrt(read.var() + 64e-5)
        y = y.ravel() * p["ln_x.weight"] + p["ln_x.bias"] + ((r * k * p["r_k"]).sum(1, keepdims=True) * v).ravel()
        outputs.append(p["output.weight"] @ (y * g))
        before = x[t]
    return np.stack(outputs), np.stack(values)


def built(first: bool, allow_neg_eigval: bool = False) -> RWKV7TimeMix:
    torch.manual_seed(0)
    return stir(RWKV7TimeMix(16, 8, 3, 4, 2, 5, first=first, allow_neg_eigval=allow_neg_eigval), scale=0.3).double()


def draw(seed: int) -> Tensor:
    return torch.randn(1, 70, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("allow_neg_eigval", [False, True])
def test_equals_the_recurrence_written_out(allow_neg_eigval: bool) -> None:
    layer, x, v_first = built(False, allow_neg_eigval), draw(1), draw(2)
    with torch.no_grad():
        got = layer(x, bus={"v_first": v_first})
    np.testing.assert_allclose(got[0].numpy(), written_out(layer, x[0].numpy(), v_first[0].numpy())[0], atol=1e-10)


def test_the_first_layer_lends_its_values() -> None:
    bus: dict[str, Tensor] = {}
    first, other, x = built(first=True), built(first=False), draw(1)
    first(x, bus=bus)
    assert torch.equal(bus["v_first"], first.value(x + (torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1) - x) * first.x_v))
    assert (first.writes, first.reads, other.writes, other.reads) == (("v_first",), (), (), ("v_first",))
    with pytest.raises(ValueError, match="reads v_first from the bus"):
        other(x)


def normed(norm: nn.LayerNorm, x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(1, keepdims=True)
    scale = np.sqrt(x.var(1, keepdims=True) + 1e-5)
    return centred / scale * norm.weight.detach().numpy() + norm.bias.detach().numpy()


def mixed(layer: RWKV7ChannelMix, x: np.ndarray) -> np.ndarray:
    p = {name: tensor.detach().numpy().squeeze() for name, tensor in layer.state_dict().items()}
    before = np.concatenate([np.zeros_like(x[:1]), x[:-1]])
    return np.maximum((x + p["x_k"] * (before - x)) @ p["key.weight"].T, 0) ** 2 @ p["value.weight"].T


def test_the_model_equals_its_formulas() -> None:
    """Norm behind the embedding, then time mixing and channel mixing by turns, a last norm and a head of its own."""
    model = stir(create_model("rwkv7-tiny", layers="FC(TC)*2"), scale=0.2).double().eval()
    ids = torch.randint(0, 61, (1, 23), generator=torch.Generator().manual_seed(0))
    x = normed(model.backbone.embedding_norm, model.backbone.embedding.weight[ids[0]].detach().numpy())
    first = None
    for layer in model.backbone.layers:
        h = normed(layer.norm, x)
        if isinstance(layer.mixer, RWKV7TimeMix):
            y, values = written_out(layer.mixer, h, first)
            first = values if first is None else first
        else:
            y = mixed(layer.mixer, h)
        x = x + y
    expected = normed(model.backbone.norm_f, x) @ model.lm_head.weight.detach().numpy().T
    with torch.no_grad():
        np.testing.assert_allclose(model(ids)[0].numpy(), expected, atol=1e-9)


def test_one_layer_comes_first() -> None:
    parts = {"a": Spec(RWKV7TimeMix, head_dim=8), "b": Spec(RWKV7TimeMix, head_dim=8, first=False), "c": Spec(RWKV7ChannelMix)}
    with torch.device("meta"):
        model = FlatBackbone(32, "a c (b c)*11", parts)
    assert [layer.mixer.reads for layer in model.layers if isinstance(layer.mixer, RWKV7TimeMix)] == [(), *[("v_first",)] * 11]
    with pytest.raises(ValueError, match=r"layer 0 \(RWKV7TimeMix\) reads \['v_first'\]"):
        FlatBackbone(32, "(b c)*2", parts)


def test_blocks_start_as_identities() -> None:
    """The outputs start at zero, also in a backbone."""
    model = create_model("rwkv7-tiny")
    ids = torch.randint(0, 61, (1, 5))
    torch.testing.assert_close(
        model(ids), model.lm_head(model.backbone.norm_f(model.backbone.embedding_norm(model.backbone.embedding(ids))))
    )


def test_the_state_stays_bounded() -> None:
    layer = built(first=True)
    _, state = layer.scan(torch.cat([draw(seed) for seed in range(20)], dim=1))
    assert state.s.abs().max() < 100
