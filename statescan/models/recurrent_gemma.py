"""Griffin as Google released it (RecurrentGemma), and the published sizes."""

from __future__ import annotations

from statescan.heads import LanguageModel
from statescan.layers import GatedMLP
from statescan.mixers import RGLRU, Attention
from statescan.registry import Family, register_model
from statescan.spec import Spec

FAMILY = Family(
    name="recurrent-gemma",
    title="Griffin: Mixing Gated Linear Recurrences with Local Attention for Efficient Language Models",
    url="https://arxiv.org/abs/2402.19427",
    bibtex="""@article{de2024griffin,
  title={Griffin: Mixing Gated Linear Recurrences with Local Attention for Efficient Language Models},
  author={De, Soham and Smith, Samuel L. and Fernando, Anushan and Botev, Aleksandar and others},
  journal={arXiv preprint arXiv:2402.19427},
  year={2024}
}""",
    exact="Layers, wiring and parameter counts; checkpoints of transformers load and export.",
    deviates="A query sees 2048 keys, its own among them, as in transformers; the authors' code lets it see 2049.",
)

# name: depth, width, heads, inner width of the MLP, bfloat16 root of the width, parameters
_SIZES = {
    "2b": (26, 2560, 10, 7680, 50.5, 2_682_862_080),
    "9b": (38, 4096, 16, 12288, 64.0, 8_579_977_216),
}

for _name, (_depth, _width, _heads, _inner, _root, _count) in _SIZES.items():
    register_model(
        f"recurrent-gemma-{_name}",
        Spec(
            LanguageModel,
            vocab_size=256000, d_model=_width, layers=("RFRFAF" * _depth)[: 2 * _depth], norm="rms_offset", norm_eps=1e-6,
            residual_in_fp32=False, embedding_scale=_root, logit_cap=30.0,
            parts={
                "R": Spec(RGLRU, num_heads=_heads),
                "A": Spec(Attention, num_heads=_heads, num_kv_heads=1, window=2048, rotary_dim=_width // _heads // 2, out_bias=True),
                "F": Spec(GatedMLP, d_ff=_inner, activation="gelu_tanh", bias=True),
            },
        ),
        family=FAMILY,
        parameters=_count,
    )  # fmt: skip

register_model(
    "recurrent-gemma-tiny",
    Spec(
        LanguageModel,
        vocab_size=61, d_model=24, layers="RAF", norm="rms_offset", norm_eps=1e-6, residual_in_fp32=False, embedding_scale=4.90625,
        logit_cap=30.0,
        parts={
            "R": Spec(RGLRU, num_heads=3),
            "A": Spec(Attention, num_heads=3, num_kv_heads=1, window=6, rotary_dim=4, out_bias=True),
            "F": Spec(GatedMLP, d_ff=20, activation="gelu_tanh", bias=True),
        },
    ),
    family=FAMILY,
    tiny=True,
)  # fmt: skip
