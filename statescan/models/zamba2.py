"""Zamba2: the published sizes."""

from __future__ import annotations

from statescan.blocks import SharedBlockLayer
from statescan.heads import LanguageModel
from statescan.mixers import Mamba2
from statescan.registry import Family, register_model
from statescan.spec import Spec

FAMILY = Family(
    name="zamba2",
    title="The Zamba2 Suite: Technical Report",
    url="https://arxiv.org/abs/2411.15242",
    bibtex="""@article{glorioso2024zamba2,
  title={The Zamba2 Suite: Technical Report},
  author={Glorioso, Paolo and Anthony, Quentin and Tokpanov, Yury and Golubeva, Anna and Shyam, Vasudev and others},
  journal={arXiv preprint arXiv:2411.15242},
  year={2024}
}""",
    exact="Layers, shared blocks, wiring and parameter counts; checkpoints of transformers load and export.",
    deviates="The sizes of the 1.2B and 7B models are what their files are known to say; a file's own values always win.",
)


def _model(
    depth: int, width: int, hybrids: tuple[int, ...], blocks: str, mixer: Spec[Mamba2], shared: Spec[SharedBlockLayer]
) -> Spec[LanguageModel]:
    letters = iter(blocks * len(hybrids))
    shared = shared.override({"mixer": mixer, "num_heads": 32, "d_ff": 4 * width})
    return Spec(
        LanguageModel,
        vocab_size=32000, d_model=width, layers="".join(next(letters) if i in hybrids else "M" for i in range(depth)),
        residual_in_fp32=False, parts={"M": mixer, **dict.fromkeys(blocks, shared)},
    )  # fmt: skip


def _mamba2(d_state: int, ngroups: int = 1) -> Spec[Mamba2]:
    return Spec(Mamba2, d_state=d_state, headdim=64, ngroups=ngroups, dt_limit=(0.001, float("inf")))


_PLAIN, _TURNED = Spec(SharedBlockLayer), Spec(SharedBlockLayer, rotary_base=10000.0)
_SIZES = {
    "1.2b": (_model(38, 2048, tuple(range(5, 36, 6)), "H", _mamba2(128), _TURNED.override({"adapt_attention": True})), 1_215_064_704),
    "2.7b": (_model(54, 2560, (6, 12, 18, 24, 30, 36, 42, 47, 51), "HI", _mamba2(64), _PLAIN), 2_662_214_560),
    "7b": (_model(81, 3584, (6, *range(11, 78, 6)), "HI", _mamba2(64, ngroups=2), _TURNED), 7_356_749_648),
}

for _name, (_spec, _count) in _SIZES.items():
    register_model(f"zamba2-{_name}", _spec, family=FAMILY, parameters=_count)

_TINY = Spec(Mamba2, d_state=8, headdim=8, chunk_size=8)
register_model(
    "zamba2-tiny",
    Spec(
        LanguageModel,
        vocab_size=61, d_model=16, layers="H", residual_in_fp32=False,
        parts={
            "H": Spec(
                SharedBlockLayer, mixer=_TINY, num_heads=4, num_kv_heads=2, d_ff=20, rank=3, adapt_attention=True, rotary_base=10000.0,
                capacity=48,
            ),
        },
    ),
    family=FAMILY,
    tiny=True,
)  # fmt: skip
