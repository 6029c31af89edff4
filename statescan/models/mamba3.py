"""Mamba-3 language models: mixers between gated MLPs. The paper's models are not published as files, so no size is named here."""

from __future__ import annotations

from statescan.heads import LanguageModel
from statescan.layers import GatedMLP
from statescan.mixers import Mamba3
from statescan.registry import Family, register_model
from statescan.spec import Spec

FAMILY = Family(
    name="mamba3",
    introduces=("Mamba3",),
    title="Mamba-3: Improved Sequence Modeling using State Space Principles",
    url="https://openreview.net/forum?id=HwCvaJOiCj",
    bibtex="""@inproceedings{mamba3,
  title={Mamba-3: Improved Sequence Modeling using State Space Principles},
  booktitle={International Conference on Learning Representations},
  year={2026}
}""",
    exact="The mixer: SISO and MIMO, both pair layouts, both rates of decay, parameter names and counts.",
    deviates="The phase is summed in float64. With a norm before out_proj, MIMO norms each of its outputs (unverified).",
)

register_model(
    "mamba3-tiny",
    Spec(
        LanguageModel, vocab_size=61, d_model=32, layers="(MF)*2",
        parts={"M": Spec(Mamba3, d_state=8, headdim=16, mimo_rank=2), "F": Spec(GatedMLP, d_ff=48)},
    ),
    family=FAMILY,
    tiny=True,
)  # fmt: skip
