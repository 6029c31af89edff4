"""Granite 4 hybrids: the published sizes."""

from __future__ import annotations

from statescan.heads import LanguageModel
from statescan.layers import GatedMLP
from statescan.mixers import Attention, Mamba2
from statescan.registry import Family, register_model
from statescan.spec import Spec

FAMILY = Family(
    name="granite-4-h",
    title="Granite 4.0: hyper-efficient, high performance hybrid models for enterprise",
    url="https://www.ibm.com/new/announcements/ibm-granite-4-0-hyper-efficient-high-performance-hybrid-models",
    bibtex="""@misc{ibm2025granite4,
  title={{IBM} {G}ranite 4.0: hyper-efficient, high performance hybrid models for enterprise},
  author={{IBM Research}},
  year={2025},
  url={https://www.ibm.com/granite}
}""",
    exact="Layers, multipliers, wiring and parameter counts; checkpoints of transformers load and export.",
    deviates="The sizes and multipliers of the published models are what their files are known to say; a file's own values always win.",
)

# One attention layer without positions in ten: the sixth.
_PATTERN = "(MFMFMFMFMFAFMFMFMFMF)*4"

register_model(
    "granite-4-h-micro",
    Spec(
        LanguageModel,
        vocab_size=100352, d_model=2048, layers=_PATTERN, residual_in_fp32=False, embedding_scale=12.0, residual_scale=0.22,
        logit_scale=1 / 8,
        parts={
            "M": Spec(Mamba2, d_state=128, headdim=64),
            "A": Spec(Attention, num_heads=32, num_kv_heads=8, rotary_base=None, scale=1 / 64),
            "F": Spec(GatedMLP, d_ff=8192),
        },
    ),
    family=FAMILY,
    parameters=3_191_396_096,
)  # fmt: skip

register_model(
    "granite-4-h-test",
    Spec(
        LanguageModel,
        vocab_size=61, d_model=24, layers="MAF", residual_in_fp32=False, embedding_scale=6.0, residual_scale=0.5, logit_scale=0.25,
        parts={
            "M": Spec(Mamba2, d_state=8, headdim=8, ngroups=2, chunk_size=8),
            "A": Spec(Attention, num_heads=4, num_kv_heads=2, rotary_base=None, scale=0.3, capacity=48),
            "F": Spec(GatedMLP, d_ff=20),
        },
    ),
    family=FAMILY,
    tiny=True,
)  # fmt: skip
