"""OLMo-Hybrid: Gated DeltaNet, and attention in every fourth layer, there with the norms behind what they belong to."""

from __future__ import annotations

from typing import Any

from statescan.blocks import PostNorm
from statescan.heads import LanguageModel
from statescan.layers import GatedMLP
from statescan.mixers import Attention, GatedDeltaNet
from statescan.registry import Family, register_model
from statescan.spec import Spec

FAMILY = Family(
    name="olmo-hybrid",
    title="OLMo Hybrid: From Theory to Practice and Back",
    url="https://huggingface.co/allenai/Olmo-Hybrid-7B",
    bibtex="""@misc{olmo2026hybrid,
  title={{OLMo Hybrid}},
  author={{Team OLMo}},
  year={2026},
  url={https://huggingface.co/allenai/Olmo-Hybrid-7B}
}""",
    exact="Layers, wiring and parameter counts; checkpoints of transformers load and export.",
    deviates="Initialisation of matrices is this library's.",
)


def _parts(delta: dict[str, Any], attention: dict[str, Any], inner: int) -> dict[str, Spec[Any]]:
    mlp = Spec(GatedMLP, d_ff=inner)
    return {
        "D": Spec(GatedDeltaNet, allow_neg_eigval=True, **delta),
        "F": mlp,
        "A": Spec(PostNorm, mixer=Spec(Attention, rotary_base=None, qk_norm="whole", norm_eps=1e-6, **attention), norm_eps=1e-6),
        "G": Spec(PostNorm, mixer=mlp, norm_eps=1e-6),
    }


register_model(
    "olmo-hybrid-7b",
    Spec(
        LanguageModel, vocab_size=100352, d_model=3840, layers="(DFDFDFAG)*8", norm_eps=1e-6, residual_in_fp32=False, tie_embeddings=False,
        parts=_parts({"num_heads": 30, "head_dim": 96, "num_v_heads": 30}, {"num_heads": 30, "num_kv_heads": 30, "head_dim": 128}, 11008),
    ),
    family=FAMILY,
    parameters=7_430_870_688,
)  # fmt: skip

register_model(
    "olmo-hybrid-tiny",
    Spec(
        LanguageModel, vocab_size=31, d_model=16, layers="DFAG", norm_eps=1e-6, residual_in_fp32=False, tie_embeddings=False,
        parts=_parts({"num_heads": 2, "head_dim": 4, "num_v_heads": 2}, {"num_heads": 2, "num_kv_heads": 1, "capacity": 48}, 20),
    ),
    family=FAMILY,
    tiny=True,
)  # fmt: skip
