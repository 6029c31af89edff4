"""LFM2: the published sizes."""

from __future__ import annotations

from statescan.heads import LanguageModel
from statescan.layers import GatedMLP
from statescan.mixers import Attention, GatedShortConv, MoE
from statescan.registry import Family, register_model
from statescan.spec import Spec

FAMILY = Family(
    name="lfm2",
    introduces=("GatedShortConv",),
    title="LFM2 Technical Report",
    url="https://arxiv.org/abs/2511.23404",
    bibtex="""@article{liquidai2025lfm2,
  title={{LFM2} Technical Report},
  author={{Liquid AI}},
  journal={arXiv preprint arXiv:2511.23404},
  year={2025}
}""",
    exact="Layers, wiring and parameter counts; checkpoints of transformers load and export.",
    deviates="Which layers of the 2.6B and 8B models attend is what their files are known to say; a file's own list always wins.",
)


def _model(depth: int, width: int, heads: int, inner: int, attends: tuple[int, ...]) -> Spec[LanguageModel]:
    return Spec(
        LanguageModel,
        vocab_size=65536, d_model=width, layers="".join("AF" if i in attends else "CF" for i in range(depth)), residual_in_fp32=False,
        parts={
            "C": Spec(GatedShortConv),
            "A": Spec(Attention, num_heads=heads, num_kv_heads=8, rotary_base=1e6, qk_norm=True),
            "F": Spec(GatedMLP, d_ff=inner),
        },
    )  # fmt: skip


_SIXTEEN = (2, 5, 8, 10, 12, 14)
# The published widths of the MLP are two thirds of what the files say, rounded up to a multiple of 256.
_SIZES = {
    "350m": (_model(16, 1024, 16, 4608, _SIXTEEN), 354_483_968),
    "700m": (_model(16, 1536, 24, 6912, _SIXTEEN), 742_489_344),
    "1.2b": (_model(16, 2048, 32, 8192, _SIXTEEN), 1_170_340_608),
    "2.6b": (_model(30, 2048, 32, 10752, (2, 5, 9, 13, 17, 21, 25, 28)), 2_569_272_320),
}

for _name, (_spec, _count) in _SIZES.items():
    register_model(f"lfm2-{_name}", _spec, family=FAMILY, parameters=_count)

_EXPERTS = Spec(MoE, num_experts=32, top_k=4, d_ff=1792, score="sigmoid", renormalise_eps=1e-6, selection_bias=True)
_MOE = _model(24, 2048, 32, 7168, (2, 6, 10, 14, 18, 21))
register_model(
    "lfm2-8b-a1b",
    _MOE.override({"layers": _MOE.arguments["layers"][:4] + _MOE.arguments["layers"][4:].replace("F", "E"), "parts.E": _EXPERTS}),
    family=FAMILY,
    parameters=8_339_929_856,
)

register_model(
    "lfm2-tiny",
    Spec(
        LanguageModel,
        vocab_size=61, d_model=24, layers="CAF", residual_in_fp32=False,
        parts={
            "C": Spec(GatedShortConv),
            "A": Spec(Attention, num_heads=4, num_kv_heads=2, rotary_base=1e6, qk_norm=True, capacity=48),
            "F": Spec(GatedMLP, d_ff=20),
        },
    ),
    family=FAMILY,
    tiny=True,
)  # fmt: skip
