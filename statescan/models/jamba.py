"""Jamba: one attention layer in eight, Mamba elsewhere, and experts in every second feed-forward layer."""

from __future__ import annotations

from statescan.heads import LanguageModel
from statescan.layers import GatedMLP
from statescan.mixers import Attention, Mamba, MoE
from statescan.registry import Family, register_model
from statescan.spec import Spec

FAMILY = Family(
    name="jamba",
    title="Jamba: A Hybrid Transformer-Mamba Language Model",
    url="https://arxiv.org/abs/2403.19887",
    bibtex="""@article{lieber2024jamba,
  title={Jamba: A Hybrid {Transformer}-{Mamba} Language Model},
  author={Lieber, Opher and Lenz, Barak and Bata, Hofit and Cohen, Gal and Osin, Jhonathan and Dalmedigos, Itay and Safahi, Erez and
    Meirom, Shaked and Belinkov, Yonatan and Shalev-Shwartz, Shai and others},
  journal={arXiv preprint arXiv:2403.19887},
  year={2024}
}""",
    exact="Layers, wiring, inner norms, router and parameter count; checkpoints of transformers load and export.",
    deviates="A prompt continues from the state it is given, where those of transformers restart at every call of more than one token.",
)

_LAYERS = "MFMEMFMEAFMEMFME"
"""Eight pairs of a mixer (M, A) and a feed-forward layer (F, or the experts E)."""

register_model(
    "jamba-v0.1",
    Spec(
        LanguageModel, vocab_size=65536, d_model=4096, layers=f"({_LAYERS})*4", norm_eps=1e-6, tie_embeddings=False, residual_in_fp32=False,
        parts={
            "M": Spec(Mamba, bcdt_norm="rms_weighted"),
            "A": Spec(Attention, num_heads=32, num_kv_heads=8, rotary_base=None),
            "F": Spec(GatedMLP, d_ff=14336),
            "E": Spec(MoE, num_experts=16, top_k=2, d_ff=14336, renormalise=False),
        },
    ),
    family=FAMILY,
    parameters=51_570_323_328,
)  # fmt: skip

register_model(
    "jamba-tiny",
    Spec(
        LanguageModel, vocab_size=61, d_model=24, layers="MFAE", tie_embeddings=False, residual_in_fp32=False,
        parts={
            "M": Spec(Mamba, d_state=5, bcdt_norm="rms_weighted"),
            "A": Spec(Attention, num_heads=4, num_kv_heads=2, rotary_base=None, capacity=48),
            "F": Spec(GatedMLP, d_ff=20),
            "E": Spec(MoE, num_experts=3, top_k=2, d_ff=12, renormalise=False),
        },
    ),
    family=FAMILY,
    tiny=True,
)  # fmt: skip
