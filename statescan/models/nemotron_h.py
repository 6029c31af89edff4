"""Nemotron-H: Mamba-2, a few layers of attention without positions, and MLPs or experts, one of them a layer."""

from __future__ import annotations

from statescan.heads import LanguageModel
from statescan.layers import MLP
from statescan.mixers import Attention, Mamba2, MoE
from statescan.registry import Family, register_model
from statescan.spec import Spec

FAMILY = Family(
    name="nemotron-h",
    title="Nemotron-H: A Family of Accurate and Efficient Hybrid Mamba-Transformer Models",
    url="https://arxiv.org/abs/2504.03624",
    bibtex="""@article{nvidia2025nemotronh,
  title={{Nemotron-H}: A Family of Accurate and Efficient Hybrid {Mamba}-{Transformer} Models},
  author={{NVIDIA}},
  journal={arXiv preprint arXiv:2504.03624},
  year={2025}
}""",
    exact="Layers, wiring and parameter count; checkpoints of transformers load and export, those with experts too.",
    deviates="The order of the layers has the published counts (24 Mamba-2, 24 MLP, 4 attention). The clamp of the step "
    "holds on every path, where transformers applies it only to chunks; layers that predict further tokens are not offered.",
)

register_model(
    "nemotron-h-8b",
    Spec(
        LanguageModel, vocab_size=131072, d_model=4096, layers="MFMFMFMA(FMFMFMFMFMA)*3(FM)*5F", tie_embeddings=False,
        residual_in_fp32=False,
        parts={
            "M": Spec(Mamba2, headdim=64, ngroups=8, chunk_size=128, dt_limit=(0.001, float("inf"))),
            "A": Spec(Attention, num_heads=32, num_kv_heads=8, head_dim=128, rotary_base=None),
            "F": Spec(MLP, d_ff=21504),
        },
    ),
    family=FAMILY,
    parameters=8_100_852_736,
)  # fmt: skip

register_model(
    "nemotron-h-tiny",
    Spec(
        LanguageModel, vocab_size=61, d_model=24, layers="MFAE", tie_embeddings=False, residual_in_fp32=False,
        parts={
            "M": Spec(Mamba2, d_state=5, expand=1.5, headdim=6, ngroups=2, chunk_size=4, dt_limit=(0.01, float("inf"))),
            "A": Spec(Attention, num_heads=4, num_kv_heads=2, head_dim=5, rotary_base=None, capacity=48),
            "F": Spec(MLP, d_ff=20),
            "E": Spec(
                MoE, num_experts=4, top_k=2, d_ff=8, score="sigmoid", scale=1.7, selection_bias=True, groups=2, top_groups=1,
                activation="relu2", gated=False, latent=12, shared_ff=10,
            ),
        },
    ),
    family=FAMILY,
    tiny=True,
)  # fmt: skip
