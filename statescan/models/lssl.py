"""LSSL: the classifier of images read pixel by pixel."""

from __future__ import annotations

from statescan.heads import LanguageModel
from statescan.mixers import LSSL
from statescan.models.s4 import NormBehind, classifier
from statescan.registry import Family, register_model
from statescan.spec import Spec

FAMILY = Family(
    name="lssl",
    introduces=("LSSL",),
    title="Combining Recurrent, Convolutional, and Continuous-time Models with Linear State-Space Layers",
    url="https://arxiv.org/abs/2110.13985",
    bibtex="""@inproceedings{gu2021combining,
  title={Combining Recurrent, Convolutional, and Continuous-time Models with Linear State-Space Layers},
  author={Gu, Albert and Johnson, Isys and Goel, Karan and Saab, Khaled and Dao, Tri and Rudra, Atri and R{\\'e}, Christopher},
  booktitle={Advances in Neural Information Processing Systems},
  year={2021}
}""",
    exact="The layer in its three ways of learning, with several readouts, its matrices, and its parameter counts.",
    deviates="Dense matrices take the place of the fast products with a tridiagonal inverse. The paper's stacks were not released: four "
    "layers of the released default, with norms behind them, stand for them, and their count is not a published one.",
)

_LAYER = Spec(LSSL, d_state=256, dropout=0.1)
register_model("lssl-cifar", classifier(10, 256, 3, norm="layer", dropout=0.1, n_layer=4, mixer=_LAYER), family=FAMILY, parameters=540_178)
register_model(
    "lssl-tiny",
    Spec(LanguageModel, vocab_size=31, d_model=8, layers="S", norm="layer", parts={"S": Spec(NormBehind, mixer=Spec(LSSL, d_state=3))}),
    family=FAMILY,
    tiny=True,
)
