"""RetNet language models: the size that the released code configures."""

from __future__ import annotations

from statescan.heads import LanguageModel
from statescan.layers import GatedMLP
from statescan.mixers import RetNet
from statescan.registry import Family, register_model
from statescan.spec import Spec

FAMILY = Family(
    name="retnet",
    introduces=("RetNet",),
    title="Retentive Network: A Successor to Transformer for Large Language Models",
    url="https://arxiv.org/abs/2307.08621",
    bibtex="""@article{sun2023retentive,
  title={Retentive Network: A Successor to Transformer for Large Language Models},
  author={Sun, Yutao and Dong, Li and Huang, Shaohan and Ma, Shuming and Xia, Yuqing and Xue, Jilong and Wang, Jianyong and Wei, Furu},
  journal={arXiv preprint arXiv:2307.08621},
  year={2023}
}""",
    exact="Layers, wiring and parameter counts, as in flash-linear-attention's RetNet.",
    deviates="As in that code, rotary positions in place of the paper's xPos, and an RMS norm a head in place of its group norm.",
)

register_model(
    "retnet-1.3b",
    Spec(
        LanguageModel, vocab_size=32000, d_model=2048, layers="(RF)*24", norm_eps=1e-6, tie_embeddings=False,
        parts={"R": Spec(RetNet, num_heads=8, norm_eps=1e-6), "F": Spec(GatedMLP, d_ff=2816)},
    ),
    family=FAMILY,
    parameters=1_351_727_104,
)  # fmt: skip

register_model(
    "retnet-tiny",
    Spec(
        LanguageModel, vocab_size=31, d_model=16, layers="RF", tie_embeddings=False,
        parts={"R": Spec(RetNet, num_heads=2), "F": Spec(GatedMLP, d_ff=20)},
    ),
    family=FAMILY,
    tiny=True,
)  # fmt: skip
