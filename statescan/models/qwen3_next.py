"""Qwen3-Next and Qwen3.5's language model: Gated DeltaNet, and gated attention in every fourth layer."""

from __future__ import annotations

from typing import Any

from statescan.heads import LanguageModel
from statescan.layers import GatedMLP
from statescan.mixers import Attention, GatedDeltaNet, MoE
from statescan.registry import Family, register_model
from statescan.spec import Spec

FAMILY = Family(
    name="qwen3-next",
    title="Qwen3-Next: Towards Ultimate Training & Inference Efficiency",
    url="https://github.com/QwenLM/Qwen3",
    bibtex="""@misc{qwen2025qwen3next,
  title={{Qwen3-Next}: Towards Ultimate Training \\& Inference Efficiency},
  author={{Qwen Team}},
  year={2025}
}""",
    exact="Layers, wiring and parameter counts; checkpoints of transformers load and export, of Qwen3.5 those of the language model alone.",
    deviates="Fresh delta layers draw their steps as Mamba-2 does, where the released code starts every dt_bias at one; the layers that "
    "predict further tokens are left out.",
)


def _mixers(heads: int, kv_heads: int, head_dim: int, delta: dict[str, Any], capacity: int | None = None) -> dict[str, Spec[Any]]:
    return {
        "D": Spec(GatedDeltaNet, expand_v=1.0, norm_eps=1e-6, **delta),
        "A": Spec(
            Attention, num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim, rotary_base=1e7, rotary_dim=head_dim // 4,
            qk_norm="offset", norm_eps=1e-6, gate=True, capacity=capacity,
        ),
    }  # fmt: skip


_DELTA = {"num_heads": 16, "head_dim": 128, "num_v_heads": 32}

register_model(
    "qwen3-next-80b-a3b",
    Spec(
        LanguageModel, vocab_size=151936, d_model=2048, layers="(DEDEDEAE)*12", norm="rms_offset", norm_eps=1e-6, residual_in_fp32=False,
        tie_embeddings=False,
        parts={
            **_mixers(16, 2, 256, _DELTA),
            "E": Spec(MoE, num_experts=512, top_k=10, d_ff=512, shared_ff=512, shared_gate=True),
        },
    ),
    family=FAMILY,
    parameters=79_674_391_296,
)  # fmt: skip

register_model(
    "qwen3.5-9b",
    Spec(
        LanguageModel, vocab_size=248320, d_model=4096, layers="(DFDFDFAF)*8", norm="rms_offset", norm_eps=1e-6, residual_in_fp32=False,
        tie_embeddings=False, parts={**_mixers(16, 4, 256, _DELTA), "F": Spec(GatedMLP, d_ff=12288)},
    ),
    family=FAMILY,
    parameters=8_953_803_264,
)  # fmt: skip

register_model(
    "qwen3-next-tiny",
    Spec(
        LanguageModel, vocab_size=31, d_model=16, layers="DEAF", norm="rms_offset", norm_eps=1e-6, residual_in_fp32=False,
        tie_embeddings=False,
        parts={
            **_mixers(2, 1, 8, {"num_heads": 2, "head_dim": 4, "num_v_heads": 4}, capacity=48),
            "E": Spec(MoE, num_experts=4, top_k=2, d_ff=8, shared_ff=8, shared_gate=True),
            "F": Spec(GatedMLP, d_ff=20),
        },
    ),
    family=FAMILY,
    tiny=True,
)  # fmt: skip
