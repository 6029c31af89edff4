"""Granite 4 hybrids: the published sizes."""

from __future__ import annotations

from torch import nn

from statescan.heads import LanguageModel
from statescan.layers import GatedMLP
from statescan.mixers import Attention, Mamba2, MoE
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


def _model(width: int, heads: int, kv_heads: int, divisor: float, second: Spec[nn.Module]) -> Spec[LanguageModel]:
    return Spec(
        LanguageModel,
        vocab_size=100352, d_model=width, layers=_PATTERN, residual_in_fp32=False, embedding_scale=12.0, residual_scale=0.22,
        logit_scale=1 / divisor,
        parts={
            "M": Spec(Mamba2, d_state=128, headdim=64),
            "A": Spec(Attention, num_heads=heads, num_kv_heads=kv_heads, rotary_base=None, scale=heads / width),
            "F": second,
        },
    )  # fmt: skip


_SIZES = {
    "micro": (_model(2048, 32, 8, 8.0, Spec(GatedMLP, d_ff=8192)), 3_191_396_096),
    "tiny": (_model(1536, 12, 4, 6.0, Spec(MoE, num_experts=64, top_k=6, d_ff=512, shared_ff=1024)), 6_939_037_248),
    "small": (_model(4096, 32, 8, 16.0, Spec(MoE, num_experts=72, top_k=10, d_ff=768, shared_ff=1536)), 32_207_337_984),
}

for _name, (_spec, _count) in _SIZES.items():
    register_model(f"granite-4-h-{_name}", _spec, family=FAMILY, parameters=_count)

register_model(
    "granite-4-h-test",
    Spec(
        LanguageModel,
        vocab_size=61, d_model=24, layers="MAF", residual_in_fp32=False, embedding_scale=6.0, residual_scale=0.5, logit_scale=0.25,
        parts={
            "M": Spec(Mamba2, d_state=8, headdim=8, ngroups=2, chunk_size=8),
            "A": Spec(Attention, num_heads=4, num_kv_heads=2, rotary_base=None, scale=0.3, capacity=48),
            "F": Spec(MoE, num_experts=4, top_k=2, d_ff=8, shared_ff=12),
        },
    ),
    family=FAMILY,
    tiny=True,
)  # fmt: skip
