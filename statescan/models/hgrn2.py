"""HGRN2 language models: the size that the released code configures."""

from __future__ import annotations

from string import ascii_lowercase

from statescan.heads import LanguageModel
from statescan.layers import GatedMLP
from statescan.mixers import HGRN2
from statescan.registry import Family, register_model
from statescan.spec import Spec

FAMILY = Family(
    name="hgrn2",
    introduces=("HGRN2",),
    title="HGRN2: Gated Linear RNNs with State Expansion",
    url="https://arxiv.org/abs/2404.07904",
    bibtex="""@article{qin2024hgrn2,
  title={{HGRN2}: Gated Linear {RNN}s with State Expansion},
  author={Qin, Zhen and Yang, Songlin and Sun, Weixuan and Shen, Xuyang and Li, Dong and Sun, Weigao and Zhong, Yiran},
  journal={arXiv preprint arXiv:2404.07904},
  year={2024}
}""",
    exact="Layers and wiring, as in flash-linear-attention's HGRN2.",
    deviates="The forget gates' lower bounds stay where training starts, i / L in layer i of L; there they are L x D learned numbers.",
)


def _spec(depth: int, width: int, expand_ratio: int, inner: int, vocab: int, eps: float) -> Spec[LanguageModel]:
    letters = ascii_lowercase[:depth]
    mixers = {letter: Spec(HGRN2, expand_ratio=expand_ratio, lower_bound=i / depth, norm_eps=eps) for i, letter in enumerate(letters)}
    return Spec(
        LanguageModel, vocab_size=vocab, d_model=width, layers="".join(letter + "F" for letter in letters), norm_eps=eps,
        tie_embeddings=False, parts={**mixers, "F": Spec(GatedMLP, d_ff=inner)},
    )  # fmt: skip


register_model("hgrn2-1.3b", _spec(24, 2048, 128, 5632, 32000, 1e-6), family=FAMILY, parameters=1_364_346_880)
register_model("hgrn2-tiny", _spec(2, 16, 8, 20, 31, 1e-5), family=FAMILY, tiny=True)
