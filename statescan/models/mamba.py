"""Mamba language models: the published sizes."""

from __future__ import annotations

from statescan.heads import LanguageModel
from statescan.mixers import Mamba
from statescan.registry import Family, register_model
from statescan.spec import Spec

FAMILY = Family(
    name="mamba",
    introduces=("Mamba",),
    title="Mamba: Linear-Time Sequence Modeling with Selective State Spaces",
    url="https://arxiv.org/abs/2312.00752",
    bibtex="""@article{gu2023mamba,
  title={Mamba: Linear-Time Sequence Modeling with Selective State Spaces},
  author={Gu, Albert and Dao, Tri},
  journal={arXiv preprint arXiv:2312.00752},
  year={2023}
}""",
    exact="Layer, wiring, initialisation and parameter counts; checkpoints of the original project and of transformers load and export.",
    deviates="The complex variant of the scan is not offered.",
)

_SIZES = {
    "130m": (24, 768, 129_135_360),
    "370m": (48, 1024, 371_516_416),
    "790m": (48, 1536, 793_204_224),
    "1.4b": (48, 2048, 1_372_178_432),
    "2.8b": (64, 2560, 2_768_345_600),
}

for _name, (_depth, _width, _count) in _SIZES.items():
    register_model(
        f"mamba-{_name}",
        Spec(LanguageModel, vocab_size=50280, d_model=_width, layers=f"M*{_depth}", parts={"M": Spec(Mamba)}),
        family=FAMILY,
        parameters=_count,
    )

register_model(
    "mamba-tiny",
    Spec(LanguageModel, vocab_size=61, d_model=32, layers="M*2", parts={"M": Spec(Mamba, d_state=8)}),
    family=FAMILY,
    tiny=True,
)
