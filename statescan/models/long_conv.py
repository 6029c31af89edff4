"""Long convolutions: the classifiers of images read pixel by pixel, and H3's language model with kernels in place of its systems."""

from __future__ import annotations

from statescan.heads import LanguageModel, SequenceClassifier
from statescan.layers import MLP
from statescan.mixers import Attention, BidirectionalLongConv, H3Conv, LongConv
from statescan.models.h3 import pattern
from statescan.registry import Family, register_model
from statescan.spec import Spec

FAMILY = Family(
    name="long-conv",
    introduces=("LongConv", "BidirectionalLongConv", "ButterflyConv", "H3Conv"),
    title="Simple Hardware-Efficient Long Convolutions for Sequence Modeling",
    url="https://arxiv.org/abs/2302.06646",
    bibtex="""@inproceedings{fu2023simple,
  title={Simple Hardware-Efficient Long Convolutions for Sequence Modeling},
  author={Fu, Daniel Y. and Epstein, Elliot L. and Nguyen, Eric and Thomas, Armin W. and Zhang, Michael and Dao, Tri and Rudra, Atri and
    R{\\'e}, Christopher},
  booktitle={International Conference on Machine Learning},
  year={2023}
}""",
    exact="Kernels (threshold, dropout, smoothing, initialisations), the circular kernel of 2 L taps, and the classifiers' counts.",
    deviates="Learned butterflies have the matrices that their transform uses, and no others. A threshold that would leave no kernel, as "
    "the one-file version's default does, is refused.",
)

for _width, _count in ((256, 7_877_130), (512, 18_899_978)):
    register_model(
        f"long-conv-cifar-{_width}",
        Spec(
            SequenceClassifier, num_classes=10, d_model=_width, d_input=3, layers="C*6",
            parts={"C": Spec(BidirectionalLongConv, l_max=1024, channels=2, lam=0.001)},
        ),
        family=FAMILY,
        parameters=_count,
    )  # fmt: skip

register_model(
    "h3-conv-125m",
    Spec(
        LanguageModel, vocab_size=50264, d_model=768, layers=pattern(12, (1, 8)), norm="layer",
        parts={
            "H": Spec(H3Conv, l_max=2048),
            "A": Spec(Attention, num_heads=12, rotary_base=None, bias=True, out_bias=True),
            "F": Spec(MLP, d_ff=3072, activation="gelu_tanh", bias=True),
        },
    ),
    family=FAMILY,
    parameters=155_131_392,  # h3-125m-2attn with 2 * 768 * 2049 numbers for both kernels and skips in each of the ten H3 layers
)  # fmt: skip

register_model(
    "long-conv-tiny",
    Spec(LanguageModel, vocab_size=31, d_model=8, layers="C*2", norm="layer", parts={"C": Spec(LongConv, l_max=9, lam=0.001)}),
    family=FAMILY,
    tiny=True,
)
