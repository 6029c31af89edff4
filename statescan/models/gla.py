"""GLA language models: the published sizes."""

from __future__ import annotations

from statescan.heads import LanguageModel
from statescan.layers import GatedMLP
from statescan.mixers import GLA
from statescan.registry import Family, register_model
from statescan.spec import Spec

FAMILY = Family(
    name="gla",
    introduces=("GLA",),
    title="Gated Linear Attention Transformers with Hardware-Efficient Training",
    url="https://arxiv.org/abs/2312.06635",
    bibtex="""@inproceedings{yang2024gated,
  title={Gated Linear Attention Transformers with Hardware-Efficient Training},
  author={Yang, Songlin and Wang, Bailin and Shen, Yikang and Panda, Rameswar and Kim, Yoon},
  booktitle={International Conference on Machine Learning},
  year={2024}
}""",
    exact="Layers, wiring and parameter counts, as in the released code and its training configurations.",
    deviates="Fresh weights follow this library's initialisation, where the released code draws every matrix from N(0, 0.02^2).",
)

# name: width, inner width of the MLP, tied, parameters
_SIZES = {
    "340m": (1024, 2816, True, 341_707_776),
    "1.3b": (2048, 5632, False, 1_365_514_240),
}

for _name, (_width, _inner, _tied, _count) in _SIZES.items():
    register_model(
        f"gla-{_name}",
        Spec(
            LanguageModel, vocab_size=32000, d_model=_width, layers="(GF)*24", norm_eps=1e-6, tie_embeddings=_tied,
            parts={"G": Spec(GLA, num_heads=4, norm_eps=1e-6), "F": Spec(GatedMLP, d_ff=_inner)},
        ),
        family=FAMILY,
        parameters=_count,
    )  # fmt: skip

register_model(
    "gla-tiny",
    Spec(
        LanguageModel, vocab_size=31, d_model=16, layers="GF", tie_embeddings=False,
        parts={"G": Spec(GLA, num_heads=2, gate_low_rank_dim=4), "F": Spec(GatedMLP, d_ff=20)},
    ),
    family=FAMILY,
    tiny=True,
)  # fmt: skip
