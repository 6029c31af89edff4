"""Falcon language models: Falcon-Mamba, and the hybrids Falcon-H1."""

from __future__ import annotations

from typing import Any

from statescan.heads import LanguageModel
from statescan.layers import GatedMLP
from statescan.mixers import Attention, Mamba, Mamba2, Parallel
from statescan.registry import Family, register_model
from statescan.spec import Spec

FALCON_MAMBA = Family(
    name="falcon-mamba",
    title="Falcon Mamba: The First Competitive Attention-free 7B Language Model",
    url="https://arxiv.org/abs/2410.05355",
    bibtex="""@article{zuo2024falconmamba,
  title={Falcon {Mamba}: The First Competitive Attention-free {7B} Language Model},
  author={Zuo, Jingwei and Velikanov, Maksim and Rhaiem, Dhia Eddine and Chahed, Ilyas and Belkada, Younes and Kunsch, Guillaume
    and Hacid, Hakim},
  journal={arXiv preprint arXiv:2410.05355},
  year={2024}
}""",
    exact="Layer, wiring, norms of dt, B and C, and parameter count; checkpoints of transformers load and export.",
)

FALCON_H1 = Family(
    name="falcon-h1",
    introduces=("Parallel",),
    title="Falcon-H1: A Family of Hybrid-Head Language Models Redefining Efficiency and Performance",
    url="https://arxiv.org/abs/2507.22448",
    bibtex="""@article{zuo2025falconh1,
  title={Falcon-{H1}: A Family of Hybrid-Head Language Models Redefining Efficiency and Performance},
  author={Zuo, Jingwei and Velikanov, Maksim and Chahed, Ilyas and Belkada, Younes and Rhayem, Dhia Eddine and Kunsch, Guillaume
    and Hacid, Hakim and others},
  journal={arXiv preprint arXiv:2507.22448},
  year={2025}
}""",
    exact="Layer, wiring, every fixed multiplier and parameter counts; checkpoints of transformers load and export.",
    deviates="The fixed multipliers of a checkpoint come with its config.json; a fresh model of a published size has them at one.",
)

register_model(
    "falcon-mamba-7b",
    Spec(
        LanguageModel, vocab_size=65024, d_model=4096, layers="M*64", parts={"M": Spec(Mamba, bcdt_norm="rms")}, tie_embeddings=False
    ),
    family=FALCON_MAMBA,
    parameters=7_272_665_088,
)  # fmt: skip

register_model(
    "falcon-mamba-tiny",
    Spec(
        LanguageModel, vocab_size=61, d_model=24, layers="M*2", parts={"M": Spec(Mamba, d_state=6, bcdt_norm="rms")}, tie_embeddings=False
    ),
    family=FALCON_MAMBA,
    tiny=True,
)  # fmt: skip


def _h1(vocabulary: int, depth: int, width: int, mamba: dict[str, Any], attention: dict[str, Any], d_ff: int) -> Spec[LanguageModel]:
    mixer = Spec(
        Parallel,
        parts={
            "mamba": Spec(Mamba2, rmsnorm=False, **mamba),
            "self_attn": Spec(Attention, rotary_base=1e11, **attention),
        },
    )
    return Spec(
        LanguageModel, vocab_size=vocabulary, d_model=width, layers=f"(PF)*{depth}", tie_embeddings=False, residual_in_fp32=False,
        parts={"P": mixer, "F": Spec(GatedMLP, d_ff=d_ff)},
    )  # fmt: skip


_SIZES = {
    # vocabulary, layers, width, (query heads, key heads, channels a head), (heads, channels, states, groups) of Mamba-2, d_ff, count
    "0.5b": (32784, 36, 1024, (8, 2, 64), (24, 64, 128, 1), 2048, 521_411_104),
    "1.5b": (65537, 24, 2048, (8, 2, 128), (48, 64, 256, 1), 4608, 1_554_789_760),
    "1.5b-deep": (65537, 66, 1280, (6, 2, 128), (24, 64, 256, 1), 3072, 1_554_773_392),
    "3b": (65537, 32, 2560, (10, 2, 128), (32, 128, 256, 1), 6144, 3_149_261_312),
    "7b": (130049, 44, 3072, (12, 2, 128), (24, 128, 256, 1), 12288, 7_585_519_712),
    "34b": (261120, 72, 5120, (20, 4, 128), (32, 128, 256, 2), 21504, 33_642_221_312),
}

for _name, (_v, _depth, _width, (_q, _kv, _size), (_heads, _p, _n, _groups), _ff, _count) in _SIZES.items():
    register_model(
        f"falcon-h1-{_name}",
        _h1(
            _v, _depth, _width, {"expand": _heads * _p / _width, "headdim": _p, "d_state": _n, "ngroups": _groups, "chunk_size": 128},
            {"num_heads": _q, "num_kv_heads": _kv, "head_dim": _size}, _ff,
        ),
        family=FALCON_H1,
        parameters=_count,
    )  # fmt: skip

register_model(
    "falcon-h1-tiny",
    _h1(
        61, 1, 24, {"expand": 1.5, "headdim": 6, "d_state": 5, "ngroups": 2, "chunk_size": 4, "multipliers": (0.8, 1.3, 0.6, 1.7, 0.5)},
        {"num_heads": 6, "num_kv_heads": 2, "head_dim": 4, "scale": 0.39 / 2, "capacity": 48}, 20,
    ).override({
        "embedding_scale": 3.0, "logit_scale": 0.4, "parts.P.inputs": {"mamba": 1.25, "self_attn": 1.5},
        "parts.P.outputs": {"mamba": 0.6, "self_attn": 0.9}, "parts.F.multipliers": (0.7, 1.9),
    }),
    family=FALCON_H1,
    tiny=True,
)  # fmt: skip
