"""RWKV-7 language models: the published sizes."""

from __future__ import annotations

from typing import Any

from statescan.heads import LanguageModel
from statescan.mixers import RWKV7ChannelMix, RWKV7TimeMix
from statescan.registry import Family, register_model
from statescan.spec import Spec

FAMILY = Family(
    name="rwkv7",
    introduces=("RWKV7TimeMix", "RWKV7ChannelMix"),
    title='RWKV-7 "Goose" with Expressive Dynamic State Evolution',
    url="https://arxiv.org/abs/2503.14456",
    bibtex="""@article{peng2025rwkv7,
  title={{RWKV-7} "Goose" with Expressive Dynamic State Evolution},
  author={Peng, Bo and Zhang, Ruichong and Goldstein, Daniel and Alcaide, Eric and Du, Xingjian and others},
  journal={arXiv preprint arXiv:2503.14456},
  year={2025}
}""",
    exact="Recurrence, token shift, value residual, wiring and parameter counts (of checkpoints whose first layer has no value residual).",
    deviates="Initial values do not depend on the depth, and embedding and head start as in the other models here; released checkpoints "
    "are not read yet.",
)


def _model(vocabulary: int, depth: int, width: int, **sizes: Any) -> Spec[Any]:
    """The first time mix lends its values to the others."""
    parts = {
        "F": Spec(RWKV7TimeMix, **sizes, first=True),
        "T": Spec(RWKV7TimeMix, **sizes, first=False),
        "C": Spec(RWKV7ChannelMix),
    }
    return Spec(
        LanguageModel, vocab_size=vocabulary, d_model=width, layers=f"FC(TC)*{depth - 1}", parts=parts, norm="layer", embedding_norm=True,
        tie_embeddings=False,
    )  # fmt: skip


_SIZES = {
    # layers, width, ranks of the decay, a, the value residual and the gate, count
    "0.1b": (12, 768, (64, 64, 32, 128), 191_034_624),
    "0.4b": (24, 1024, (64, 64, 32, 128), 450_767_872),
    "1.5b": (24, 2048, (96, 96, 64, 256), 1_527_404_544),
    "2.9b": (32, 2560, (96, 96, 64, 320), 2_947_735_040),
}

for _name, (_depth, _width, (_w, _a, _v, _g), _count) in _SIZES.items():
    register_model(
        f"rwkv7-{_name}",
        _model(65_536, _depth, _width, head_dim=64, rank_w=_w, rank_a=_a, rank_v=_v, rank_g=_g),
        family=FAMILY,
        parameters=_count,
    )

register_model("rwkv7-tiny", _model(61, 2, 32, head_dim=8, rank_w=4, rank_a=3, rank_v=2, rank_g=5), family=FAMILY, tiny=True)
