"""Kimi Linear: Kimi Delta Attention, latent attention without positions in some layers, and experts."""

from __future__ import annotations

from statescan.heads import LanguageModel
from statescan.layers import GatedMLP
from statescan.mixers import KDA, MoE, MultiheadLatentAttention
from statescan.registry import Family, register_model
from statescan.spec import Spec

FAMILY = Family(
    name="kimi-linear",
    introduces=("KDA",),
    title="Kimi Linear: An Expressive, Efficient Attention Architecture",
    url="https://arxiv.org/abs/2510.26692",
    bibtex="""@article{kimi2025linear,
  title={{Kimi Linear}: An Expressive, Efficient Attention Architecture},
  author={{Kimi Team}},
  journal={arXiv preprint arXiv:2510.26692},
  year={2025}
}""",
    exact="Layers, wiring and parameter counts; checkpoints of transformers, and the released ones, load and export.",
    deviates="The choice of experts has its bias as a buffer that only a checkpoint or the user sets: training does not move it.",
)

_ATTENDS = (4, 8, 12, 16, 20, 24, 27)  # from one, as the released file counts
_LAYERS = "".join(("A" if i in _ATTENDS else "D") + ("F" if i == 1 else "E") for i in range(1, 28))

register_model(
    "kimi-linear-48b-a3b",
    Spec(
        LanguageModel, vocab_size=163840, d_model=2304, layers=_LAYERS, residual_in_fp32=False, tie_embeddings=False,
        parts={
            "D": Spec(KDA, num_heads=32, head_dim=128),
            "A": Spec(MultiheadLatentAttention, num_heads=32, kv_rank=512, nope_dim=128, rope_dim=64, value_dim=128),
            "F": Spec(GatedMLP, d_ff=9216),
            "E": Spec(MoE, num_experts=256, top_k=8, d_ff=1024, score="sigmoid", scale=2.446, selection_bias=True, shared_ff=1024),
        },
    ),
    family=FAMILY,
    parameters=49_122_675_072,
)  # fmt: skip

register_model(
    "kimi-linear-tiny",
    Spec(
        LanguageModel, vocab_size=31, d_model=16, layers="DEAF", residual_in_fp32=False, tie_embeddings=False,
        parts={
            "D": Spec(KDA, num_heads=2, head_dim=4),
            "A": Spec(MultiheadLatentAttention, num_heads=2, kv_rank=6, nope_dim=4, rope_dim=2, value_dim=4, capacity=48),
            "F": Spec(GatedMLP, d_ff=20),
            "E": Spec(MoE, num_experts=4, top_k=2, d_ff=8, score="sigmoid", scale=2.446, selection_bias=True, shared_ff=8),
        },
    ),
    family=FAMILY,
    tiny=True,
)  # fmt: skip
