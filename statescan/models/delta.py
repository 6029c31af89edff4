"""DeltaNet and Gated DeltaNet language models: the sizes that the released code configures."""

from __future__ import annotations

from statescan.heads import LanguageModel
from statescan.layers import GatedMLP
from statescan.mixers import DeltaNet, GatedDeltaNet
from statescan.registry import Family, register_model
from statescan.spec import Spec

DELTANET = Family(
    name="deltanet",
    introduces=("DeltaNet",),
    title="Parallelizing Linear Transformers with the Delta Rule over Sequence Length",
    url="https://arxiv.org/abs/2406.06484",
    bibtex="""@inproceedings{yang2024parallelizing,
  title={Parallelizing Linear Transformers with the Delta Rule over Sequence Length},
  author={Yang, Songlin and Wang, Bailin and Zhang, Yu and Shen, Yikang and Kim, Yoon},
  booktitle={Advances in Neural Information Processing Systems},
  year={2024}
}""",
    exact="Layers, wiring and parameter counts, as in the released code.",
    deviates="Fresh weights follow this library's initialisation, where the released code draws every matrix from N(0, 0.02^2).",
)

GATED = Family(
    name="gated-deltanet",
    introduces=("GatedDeltaNet",),
    title="Gated Delta Networks: Improving Mamba2 with Delta Rule",
    url="https://arxiv.org/abs/2412.06464",
    bibtex="""@inproceedings{yang2025gated,
  title={Gated Delta Networks: Improving {Mamba2} with Delta Rule},
  author={Yang, Songlin and Kautz, Jan and Hatamizadeh, Ali},
  booktitle={International Conference on Learning Representations},
  year={2025}
}""",
    exact=DELTANET.exact,
    deviates=DELTANET.deviates,
)

register_model(
    "deltanet-1.3b",
    Spec(
        LanguageModel, vocab_size=32000, d_model=2048, layers="(DF)*24", norm_eps=1e-6, tie_embeddings=False,
        parts={"D": Spec(DeltaNet, num_heads=16, norm_eps=1e-6), "F": Spec(GatedMLP, d_ff=5632)},
    ),
    family=DELTANET,
    parameters=1_365_677_056,
)  # fmt: skip

register_model(
    "gated-deltanet-1.3b",
    Spec(
        LanguageModel, vocab_size=32000, d_model=2048, layers="(DF)*21", norm_eps=1e-6, tie_embeddings=False,
        parts={"D": Spec(GatedDeltaNet, num_heads=6, head_dim=256, norm_eps=1e-6), "F": Spec(GatedMLP, d_ff=5632)},
    ),
    family=GATED,
    parameters=1_387_348_732,
)  # fmt: skip

register_model(
    "deltanet-tiny",
    Spec(
        LanguageModel, vocab_size=31, d_model=16, layers="DF", tie_embeddings=False,
        parts={"D": Spec(DeltaNet, num_heads=2, allow_neg_eigval=True), "F": Spec(GatedMLP, d_ff=20)},
    ),
    family=DELTANET,
    tiny=True,
)  # fmt: skip

register_model(
    "gated-deltanet-tiny",
    Spec(
        LanguageModel, vocab_size=31, d_model=16, layers="DF", tie_embeddings=False,
        parts={"D": Spec(GatedDeltaNet, num_heads=2, head_dim=4, num_v_heads=4), "F": Spec(GatedMLP, d_ff=20)},
    ),
    family=GATED,
    tiny=True,
)  # fmt: skip
