"""Samba language models: Mamba and sliding-window attention in turn."""

from __future__ import annotations

from statescan.heads import LanguageModel
from statescan.layers import GatedMLP
from statescan.mixers import Attention, Mamba
from statescan.registry import Family, register_model
from statescan.spec import Spec

FAMILY = Family(
    name="samba",
    title="Samba: Simple Hybrid State Space Models for Efficient Unlimited Context Language Modeling",
    url="https://arxiv.org/abs/2406.07522",
    bibtex="""@article{ren2024samba,
  title={Samba: Simple Hybrid State Space Models for Efficient Unlimited Context Language Modeling},
  author={Ren, Liliang and Liu, Yang and Lu, Yadong and Shen, Yelong and Liang, Chen and Chen, Weizhu},
  journal={arXiv preprint arXiv:2406.07522},
  year={2024}
}""",
    exact="Layers, wiring and parameter counts.",
    deviates="Fresh weights follow this library's initialisation.",
)

# name: pairs of a Mamba and an attention layer, width, heads, inner width of the MLP, parameters
_SIZES = {
    "421m": (6, 1536, 12, 4096, 421_793_280),
    "1.3b": (9, 2304, 18, 6144, 1_330_207_488),
}

for _name, (_pairs, _width, _heads, _inner, _count) in _SIZES.items():
    register_model(
        f"samba-{_name}",
        Spec(
            LanguageModel, vocab_size=32000, d_model=_width, layers=f"(MFAF)*{_pairs}",
            parts={"M": Spec(Mamba), "A": Spec(Attention, num_heads=_heads, window=2048), "F": Spec(GatedMLP, d_ff=_inner)},
        ),
        family=FAMILY,
        parameters=_count,
    )  # fmt: skip

register_model(
    "samba-tiny",
    Spec(
        LanguageModel, vocab_size=31, d_model=16, layers="MFA",
        parts={"M": Spec(Mamba, d_state=4), "A": Spec(Attention, num_heads=2, window=5), "F": Spec(GatedMLP, d_ff=20)},
    ),
    family=FAMILY,
    tiny=True,
)  # fmt: skip
