"""SGConv: published as a layer in the place of S4's or attention; a small model stands for it."""

from __future__ import annotations

from statescan.heads import LanguageModel
from statescan.mixers import SGConv
from statescan.registry import Family, register_model
from statescan.spec import Spec

FAMILY = Family(
    name="sgconv",
    introduces=("SGConv", "BidirectionalSGConv"),
    title="What Makes Convolutional Models Great on Long Sequence Modeling?",
    url="https://arxiv.org/abs/2210.09298",
    bibtex="""@inproceedings{li2023what,
  title={What Makes Convolutional Models Great on Long Sequence Modeling?},
  author={Li, Yuhong and Cai, Tianle and Zhang, Yi and Chen, Deming and Dey, Debadeepta},
  booktitle={International Conference on Learning Representations},
  year={2023}
}""",
    exact="The kernel (pieces concatenated or added, a decay by scale or a learned power of the distance), its norm and the parameter "
    "counts of a layer.",
    deviates="The norm of the initial kernel is taken when a layer is made, not in its first forward pass.",
)

register_model(
    "sgconv-tiny",
    Spec(LanguageModel, vocab_size=31, d_model=8, layers="C*2", norm="layer", parts={"C": Spec(SGConv, l_max=8, d_kernel=2)}),
    family=FAMILY,
    tiny=True,
)
