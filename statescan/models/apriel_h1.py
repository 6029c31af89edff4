"""Apriel-H1: a transformer in which the attention layers that matter least have become GroupedMamba."""

from __future__ import annotations

from statescan.heads import LanguageModel
from statescan.layers import GatedMLP
from statescan.mixers import Attention, GroupedMamba
from statescan.registry import Family, register_model
from statescan.spec import Spec

FAMILY = Family(
    name="apriel-h1",
    title="Apriel-H1: Towards Efficient Enterprise Reasoning Models",
    url="https://arxiv.org/abs/2511.02651",
    bibtex=r"""@article{ostapenko2025aprielh1,
  title={Apriel-{H1}: Towards Efficient Enterprise Reasoning Models},
  author={Ostapenko, Oleksiy and Kumar, Luke and Li, Raymond and Kocetkov, Denis and Lamy-Poirier, Joel and Radhakrishna, Shruthan and
    Parikh, Soham and Mishra, Shambhavi and Paquet, Sebastien and Sunkara, Srinivas and B{\'e}caert, Val{\'e}rie and
    Madhusudhan, Sathwik Tejaswi and Scholak, Torsten},
  journal={arXiv preprint arXiv:2511.02651},
  year={2025}
}""",
    exact="The mixer and the wiring; seeded from attention and with everything else switched off, it is linear attention.",
    deviates="The sizes of the released models are not named here, and their checkpoints are not read.",
)

register_model(
    "apriel-h1-tiny",
    Spec(
        LanguageModel, vocab_size=61, d_model=24, layers="AFGF", tie_embeddings=False, residual_in_fp32=False,
        parts={
            "A": Spec(Attention, num_heads=6, num_kv_heads=2, head_dim=4, capacity=48),
            "G": Spec(GroupedMamba, d_inner=24, d_xb=8, d_state=4),
            "F": Spec(GatedMLP, d_ff=20),
        },
    ),
    family=FAMILY,
    tiny=True,
)  # fmt: skip
