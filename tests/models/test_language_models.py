"""What the publications of language models let one check: counts of parts, orders of layers, what a layer may read."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from statescan import Spec, create_model
from statescan.interop.dialects import read_transformers
from statescan.interop.dialects.anatomy import layers_of
from statescan.registry import find_model


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def on_meta(spec: Spec[Any]) -> Any:
    with torch.device("meta"):
        return spec()


def mixers(name: str) -> list[Spec[Any]]:
    """The parts of the layers that are not feed-forward."""
    return [part for part in layers_of(find_model(name).spec.resolved()) if part.name not in ("GatedMLP", "MoE")]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("qwen3_5_text", 8_953_803_264),
        ("qwen3_next", 79_674_391_296),
        ("olmo_hybrid", 7_430_870_688),
        ("kimi_linear", 49_133_074_464),
        ("xlstm", 6_865_424_896),
    ],
)
def test_a_file_that_says_nothing_means_the_defaults_of_its_type(kind: str, expected: int) -> None:
    spec, _ = read_transformers({"model_type": kind}, kind)
    assert count(on_meta(spec)) == expected


def test_the_released_kimi_linear_lists_its_layers_from_one() -> None:
    delta = {"num_heads": 32, "head_dim": 128, "short_conv_kernel_size": 4, "full_attn_layers": [4, 8, 12, 16, 20, 24, 27]}
    delta["kda_layers"] = [i for i in range(1, 28) if i not in delta["full_attn_layers"]]
    spec, _ = read_transformers({"model_type": "kimi_linear", "linear_attn_config": delta, "first_k_dense_replace": 1}, "kimi")
    assert spec == find_model("kimi-linear-48b-a3b").spec


@pytest.mark.parametrize(("step", "dense"), [(2, []), (1, [0, 2]), (3, [2])])
def test_which_layers_of_qwen3_next_have_experts(step: int, dense: list[int]) -> None:
    config = {"model_type": "qwen3_next", "num_hidden_layers": 6, "decoder_sparse_step": step, "mlp_only_layers": dense}
    spec, _ = read_transformers(config, "qwen")
    expected = ["GatedMLP" if i in dense or (i + 1) % step else "MoE" for i in range(6)]
    assert [part.name for part in layers_of(spec.resolved())[1::2]] == expected


def test_parts_of_qwen3_next() -> None:
    model = create_model("qwen3-next-80b-a3b", device="meta")
    first, experts, attention = (model.backbone.layers[i].mixer for i in (0, 1, 6))
    assert (count(first), count(attention), count(experts)) == (33_718_464, 27_263_488, 1_614_809_088)
    assert count(model) - 48 * (512 - 10) * 3 * 2048 * 512 == 3_874_929_408  # active for a token
    assert [mixer.name == "Attention" for mixer in mixers("qwen3-next-80b-a3b")] == [(i + 1) % 4 == 0 for i in range(48)]


def test_a_kimi_delta_layer() -> None:
    assert count(create_model("kimi-linear-48b-a3b", device="meta").backbone.layers[0].mixer) == 39_514_272


@pytest.mark.parametrize(("name", "tied", "expected"), [("gla-340m", False, 374_475_776), ("gla-1.3b", True, 1_299_978_240)])
def test_gla_with_the_other_kind_of_head(name: str, tied: bool, expected: int) -> None:
    assert count(create_model(name, device="meta", tie_embeddings=tied)) == expected


def test_forget_gates_of_hgrn2_are_bounded_from_zero_upwards() -> None:
    assert [mixer.arguments["lower_bound"] for mixer in mixers("hgrn2-1.3b")] == [i / 24 for i in range(24)]


def test_griffin_attends_in_every_third_layer() -> None:
    assert [mixer.name == "Attention" for mixer in mixers("griffin-7b")] == [i % 3 == 2 for i in range(32)]


def sambay_kinds(name: str) -> list[str]:
    """Layer by layer; an attention with a window, or full; a Mamba that shares."""
    kinds = []
    for part in mixers(name):
        a = part.arguments
        kinds.append(part.name + ("-window" if a.get("window") else "") + ("-shares" if a.get("share") else ""))
    return kinds


def test_layers_of_sambay() -> None:
    lower, upper = ["Mamba", "Attention-window"], ["GatedMemoryUnit", "CrossAttention"]
    assert sambay_kinds("sambay-d8") == [*lower * 2, "Mamba-shares", "Attention-shares", *upper]
    assert sambay_kinds("phi-4-mini-flash") == [*lower * 8, "Mamba-shares", "Attention-shares", *upper * 7]
    constants = [mixer.arguments["lambda_init"] for mixer in mixers("phi-4-mini-flash")[1::2]]
    assert constants == pytest.approx([0.8 - 0.6 * 2.718281828459045 ** (-0.3 * i) for i in range(1, 32, 2)])


def test_matrices_of_sambay() -> None:
    """The published formula counts as many Mamba layers as memory units, and no full attention; the scan's own numbers it leaves out."""
    for depth in (8, 16, 24):
        width, matrices = 124 * depth, ("in_proj", "out_proj", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
        model = create_model(f"sambay-d{depth}", device="meta")
        found = sum(p.numel() for name, p in model.named_parameters() if name.split(".")[-2] in matrices)
        assert found == 240_808 * depth**3 + 2 * width**2 + 64 * depth * width


def test_phi_4_mini_flash_without_norms_biases_and_what_attention_learns_of_its_difference() -> None:
    left_out = 0
    for name, parameter in create_model("phi-4-mini-flash", device="meta").named_parameters():
        parts = name.split(".")
        bias_of_attention = parts[-1] == "bias" and parts[-2] in ("q_proj", "k_proj", "v_proj", "o_proj")
        if bias_of_attention or parts[-2] in ("norm", "norm_f", "subln") or parts[-1].startswith("lambda"):
            left_out += parameter.numel()
    assert find_model("phi-4-mini-flash").parameters == 3_852_119_040 + left_out


def test_sambay_keeps_one_cache_and_nothing_above_it() -> None:
    model = create_model("sambay-tiny")
    names = [type(layer.mixer).__name__ for layer in model.backbone.layers]
    states = dict(zip(names, model.init_state(2).layers, strict=True))  # the last attention is the one that shares
    assert Counter(names)["CrossAttention"] == 1 == Counter(names)["GatedMemoryUnit"]
    assert states["CrossAttention"] == () == states["GatedMemoryUnit"]
    assert states["Attention"].keys.shape[1] == 48


@torch.no_grad()
def test_a_prompt_needs_the_upper_layers_of_sambay_at_its_last_token_only() -> None:
    """They read the memory and the keys of layers below: of their own stream a position reads itself alone."""
    torch.manual_seed(0)
    model = create_model("sambay-tiny").eval()
    layers = list(model.backbone.layers)
    border = next(i for i, layer in enumerate(layers) if type(layer.mixer).__name__ == "GatedMemoryUnit")
    bus: dict[str, Any] = {}
    x = model.backbone.embed(torch.arange(12).view(1, 12))
    for layer in layers[:border]:
        x, _ = layer(x, bus=bus)
    other = x.clone()
    other[:, :-1] = torch.randn(1, 11, 16)
    for layer in layers[border:]:
        x, other = layer(x, bus=bus)[0], layer(other, bus=bus)[0]
    assert torch.equal(x[:, -1], other[:, -1])
    assert not torch.allclose(x[:, :-1], other[:, :-1])


@pytest.mark.parametrize("recurrent", [False, True])
def test_how_far_samba_sees(recurrent: bool) -> None:
    """Two windows of five keys reach eight tokens back; a Mamba layer below them reaches any."""
    torch.manual_seed(0)
    model = create_model("samba-tiny", layers="MFAFAF" if recurrent else "AFAF").double().eval()
    embedded: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[0]

    model.backbone.embedding.register_forward_hook(keep)
    model(torch.arange(16).view(1, 16))[0, -1].square().sum().backward()
    assert embedded[0].grad is not None
    reached = embedded[0].grad[0].abs().sum(-1) > 0
    assert reached[7:].all()
    assert reached[:7].any() == recurrent
