"""Model level of the recurrences beside Mamba: a stack of the shape of 130 million parameters each, random weights, float32.

Where transformers has the type, it takes part with the same weights: xLSTM, RecurrentGemma, Gated DeltaNet in OLMo-Hybrid's pattern.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import statescan as ss
from benchmarks.limits import Machine
from benchmarks.models import Model, Options, Start
from benchmarks.peers.client import Participant
from statescan import LanguageModel, Spec
from statescan.blocks import PostNorm
from statescan.layers import GatedMLP
from statescan.mixers import (
    GLA,
    HGRN2,
    KDA,
    MLSTM,
    RGLRU,
    SLSTM,
    Attention,
    DeltaNet,
    GatedDeltaNet,
    LogLinearGatedDeltaNet,
    LogLinearMamba2,
    Mamba3,
    MesaNet,
    RetNet,
)

WIDTH, VOCABULARY, PAIRS = 768, 50304, 12


def _stack(layers: str, mixers: dict[str, Spec[Any]], d_ff: int = 2048, tied: bool = True, **arguments: Any) -> Spec[Any]:
    parts = {"F": Spec(GatedMLP, d_ff=d_ff), **mixers}
    return Spec(LanguageModel, vocab_size=VOCABULARY, d_model=WIDTH, layers=layers, parts=parts, tie_embeddings=tied, **arguments)


def _pairs(mixer: Spec[Any], **arguments: Any) -> Spec[Any]:
    return _stack(f"(XF)*{PAIRS}", {"X": mixer}, **arguments)


_LETTERS = ascii_lowercase[:PAIRS]
_ATTENTION = Spec(Attention, num_heads=6, num_kv_heads=6, head_dim=128, rotary_base=None, qk_norm="whole", norm_eps=1e-6)
RECIPES: dict[str, Spec[Any] | str] = {
    "gla": _pairs(Spec(GLA, num_heads=4)),
    "retnet": _pairs(Spec(RetNet, num_heads=4), d_ff=1056),
    "hgrn2": _stack(
        "".join(f"{letter}F" for letter in _LETTERS),
        {letter: Spec(HGRN2, expand_ratio=128, lower_bound=i / PAIRS) for i, letter in enumerate(_LETTERS)},
    ),
    "deltanet": _pairs(Spec(DeltaNet, num_heads=6)),
    "gated-deltanet": _stack(
        f"(DFDFDFAG)*{PAIRS // 4}",
        {
            "D": Spec(GatedDeltaNet, num_heads=6, head_dim=96, num_v_heads=6, allow_neg_eigval=True),
            "A": Spec(PostNorm, mixer=_ATTENTION, norm_eps=1e-6),
            "G": Spec(PostNorm, mixer=Spec(GatedMLP, d_ff=2048), norm_eps=1e-6),
        },
        norm_eps=1e-6, residual_in_fp32=False,
    ),
    "kda": _pairs(Spec(KDA, num_heads=6, head_dim=128)),
    "rwkv7": "rwkv7-0.1b",
    "griffin": _stack(
        f"(RFRFAF)*{PAIRS // 3}",
        {
            "R": Spec(RGLRU, num_heads=6),
            "A": Spec(Attention, num_heads=6, num_kv_heads=1, window=2048, rotary_dim=64, out_bias=True),
            "F": Spec(GatedMLP, d_ff=2048, activation="gelu_tanh", bias=True),
        },
        norm="rms_offset", norm_eps=1e-6, residual_in_fp32=False, embedding_scale=27.75, logit_cap=30.0,
    ),
    "mlstm": _pairs(Spec(MLSTM, num_heads=4), tied=False, norm_eps=1e-6, residual_in_fp32=False, logit_cap=30.0),
    "slstm": _pairs(Spec(SLSTM, num_heads=4)),
    "mamba3": _pairs(Spec(Mamba3), d_ff=1152),
    "log-linear-mamba2": _pairs(Spec(LogLinearMamba2), d_ff=1152),
    "log-linear-deltanet": _pairs(Spec(LogLinearGatedDeltaNet, num_heads=6, head_dim=96)),
    "mesanet": _pairs(Spec(MesaNet, num_heads=6, head_dim=128)),
    "mamba3-mimo": _pairs(Spec(Mamba3, mimo_rank=4), d_ff=896),
}  # fmt: skip
"""A specification, or the name of a registered model."""

TRANSFORMERS = ("gated-deltanet", "griffin", "mlstm")


class Recurrence(Model):
    """One of the recipes; transformers where it has the type."""

    def __init__(self, name: str, options: Options, machine: Machine, folder: Path) -> None:
        self.recipe = RECIPES[name]
        super().__init__(name, options, machine, folder)

    def build(self) -> Any:
        """Fresh weights."""
        return ss.create_model(self.recipe) if isinstance(self.recipe, str) else self.recipe()

    def save(self, model: Any) -> None:
        """As transformers reads it, where it does."""
        (ss.export_pretrained if self.name in TRANSFORMERS else ss.save_pretrained)(model, self.folder)

    def participants(self, precision: str, training: bool = False) -> dict[str, Start | str]:
        """Name -> how to start it, or why it is absent."""
        arguments = (self.folder, precision, self.options.threads)
        start = partial(Participant, threads=self.options.threads)
        peers: dict[str, Start | str] = {"statescan": partial(start, "statescan_peer", *arguments)}
        peers["transformers"] = "absent: has no such model type"
        if self.name in TRANSFORMERS:
            peers["transformers"] = partial(start, "transformers_peer", *arguments)
        return peers
