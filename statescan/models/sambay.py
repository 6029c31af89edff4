"""SambaY: a decoder whose upper half reads one layer's scan and one layer's keys and values instead of making its own."""

from __future__ import annotations

import math
from string import ascii_letters
from typing import Any

from statescan.heads import LanguageModel
from statescan.layers import GatedMLP
from statescan.layers.norm import NormKind
from statescan.mixers import Attention, CrossAttention, GatedMemoryUnit, Mamba
from statescan.registry import Family, register_model
from statescan.spec import Spec

FAMILY = Family(
    name="sambay",
    introduces=("GatedMemoryUnit",),
    title="Decoder-Hybrid-Decoder Architecture for Efficient Reasoning with Long Generation",
    url="https://arxiv.org/abs/2507.06607",
    bibtex="""@article{ren2025decoder,
  title={Decoder-Hybrid-Decoder Architecture for Efficient Reasoning with Long Generation},
  author={Ren, Liliang and Chen, Congcong and Xu, Haoran and Kim, Young Jin and Atkinson, Adam and Zhan, Zheng and others},
  journal={arXiv preprint arXiv:2507.06607},
  year={2025}
}""",
    exact="Layers, wiring and counts of every matrix; each layer's constant of differential attention.",
    deviates="Initialisation and scales are this library's, not muP++; Phi-4-mini-Flash's keys have a bias too, which the softmax cancels.",
)


def sambay(
    depth: int, width: int, heads: int, kv_heads: int, head_dim: int, inner: int, window: int, vocab: int,
    *, differential: bool = False, bias: bool = False, norm: NormKind = "rms", d_state: int = 16, tied: bool = True,
) -> Spec[LanguageModel]:  # fmt: skip
    """Layers 0 .. depth / 2 - 1: Mamba and windowed attention in turn; then a Mamba and a full attention that share what they computed;
    then memory units and cross attention in turn. A gated MLP follows each."""
    if depth % 4:
        raise ValueError(f"depth must be a multiple of 4; got {depth}")
    parts: dict[str, Spec[Any]] = {
        "F": Spec(GatedMLP, d_ff=inner),
        "M": Spec(Mamba, d_state=d_state),
        "S": Spec(Mamba, d_state=d_state, share="memory"),
        "G": Spec(GatedMemoryUnit, source="memory", d_inner=2 * width),
    }
    sizes: dict[str, Any] = {"num_heads": heads, "num_kv_heads": kv_heads, "head_dim": head_dim, "bias": bias, "out_bias": bias}
    free = (letter for letter in ascii_letters if letter not in parts)
    layers, middle = "", depth // 2
    for i in range(depth):
        if i % 2 == 0:
            name = "M" if i < middle else "S" if i == middle else "G"
        else:
            part: Spec[Any]
            more = {"lambda_init": 0.8 - 0.6 * math.exp(-0.3 * i)} if differential else {}
            if i > middle + 1:
                part = Spec(CrossAttention, source="cache", **sizes, **more)
            elif i == middle + 1:
                part = Spec(Attention, share="cache", rotary_base=None, **sizes, **more)
            else:
                part = Spec(Attention, window=window, rotary_base=None, **sizes, **more)
            name = next((letter for letter, other in parts.items() if other == part), "") or next(free)
            parts[name] = part
        layers += name + "F"
    return Spec(LanguageModel, vocab_size=vocab, d_model=width, layers=layers, parts=parts, norm=norm, tie_embeddings=tied)


register_model(
    "phi-4-mini-flash",
    sambay(32, 2560, 40, 20, 64, 10240, 512, 200064, differential=True, bias=True, norm="layer"),
    family=FAMILY,
    parameters=3_852_562_944,
)

for _depth, _count in {8: 190_340_000, 12: 519_825_360, 16: 1_129_306_688, 20: 2_111_623_280, 24: 3_559_614_432}.items():
    register_model(
        f"sambay-d{_depth}",
        sambay(_depth, 124 * _depth, _depth, _depth // 4, 128, 4 * 124 * _depth, 128, 32000, tied=False),
        family=FAMILY,
        parameters=_count,
    )

register_model(
    "sambay-tiny",
    Spec(
        LanguageModel, vocab_size=31, d_model=16, layers="WSAGCF",
        parts={
            "W": Spec(Attention, num_heads=4, num_kv_heads=2, head_dim=6, window=5, rotary_base=None, bias=True, lambda_init=0.4),
            "S": Spec(Mamba, d_state=4, share="memory"),
            "A": Spec(Attention, num_heads=4, num_kv_heads=2, head_dim=6, rotary_base=None, capacity=48, share="cache", lambda_init=0.7),
            "G": Spec(GatedMemoryUnit, source="memory", d_inner=32),
            "C": Spec(CrossAttention, num_heads=4, num_kv_heads=2, head_dim=6, source="cache", lambda_init=0.7),
            "F": Spec(GatedMLP, d_ff=20),
        },
    ),
    family=FAMILY,
    tiny=True,
)  # fmt: skip
