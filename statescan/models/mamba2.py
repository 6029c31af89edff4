"""Mamba-2 language models: the published sizes."""

from __future__ import annotations

from statescan.heads import LanguageModel
from statescan.mixers import Mamba2
from statescan.registry import Family, register_model
from statescan.spec import Spec

FAMILY = Family(
    name="mamba2",
    introduces=("Mamba2",),
    title="Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State Space Duality",
    url="https://arxiv.org/abs/2405.21060",
    bibtex="""@inproceedings{dao2024transformers,
  title={Transformers are {SSM}s: Generalized Models and Efficient Algorithms Through Structured State Space Duality},
  author={Dao, Tri and Gu, Albert},
  booktitle={International Conference on Machine Learning},
  year={2024}
}""",
    exact="Layer, wiring, initialisation and parameter counts; checkpoints of the original project and of transformers load and export.",
    deviates="The clamp of the step holds on every path, where transformers applies it only to chunks.",
)

_SIZES = {
    "130m": (24, 768, 128_989_632),
    "370m": (48, 1024, 368_346_624),
    "780m": (48, 1536, 780_161_280),
    "1.3b": (48, 2048, 1_343_757_312),
    "2.7b": (64, 2560, 2_702_599_680),
}

for _name, (_depth, _width, _count) in _SIZES.items():
    register_model(
        f"mamba2-{_name}",
        Spec(LanguageModel, vocab_size=50288, d_model=_width, layers=f"M*{_depth}", parts={"M": Spec(Mamba2, headdim=64)}),
        family=FAMILY,
        parameters=_count,
    )

register_model(
    "mamba-codestral-7b",
    Spec(
        LanguageModel, vocab_size=32768, d_model=4096, layers="M*64", parts={"M": Spec(Mamba2, headdim=64, ngroups=8)}, tie_embeddings=False
    ),
    family=FAMILY,
    parameters=7_285_403_648,
)

register_model(
    "mamba2-tiny",
    Spec(
        LanguageModel, vocab_size=61, d_model=32, layers="M*2", parts={"M": Spec(Mamba2, d_state=16, headdim=16, ngroups=2, chunk_size=8)}
    ),
    family=FAMILY,
    tiny=True,
)
