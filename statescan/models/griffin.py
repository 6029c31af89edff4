"""Griffin and Hawk of the paper: the sizes that the authors' code configures. RecurrentGemma is a family of its own."""

from __future__ import annotations

from statescan.heads import LanguageModel
from statescan.layers import GatedMLP
from statescan.mixers import RGLRU, Attention
from statescan.models.recurrent_gemma import FAMILY as RELEASED
from statescan.registry import Family, register_model
from statescan.spec import Spec

FAMILY = Family(
    name="griffin",
    introduces=("RGLRU",),
    title=RELEASED.title,
    url=RELEASED.url,
    bibtex=RELEASED.bibtex,
    exact="Layers, wiring and parameter counts, as in the authors' code under its vocabulary of 256000.",
    deviates="A query sees 1024 keys, its own among them; the authors' code lets it see 1025.",
)


def _spec(vocab: int, width: int, layers: str, inner: int, heads: int, window: int, ff: int) -> Spec[LanguageModel]:
    size = width // heads
    parts = {
        "R": Spec(RGLRU, width=inner, num_heads=heads),
        "A": Spec(Attention, num_heads=heads, num_kv_heads=1, window=window, rotary_dim=size // 2, out_bias=True),
        "F": Spec(GatedMLP, d_ff=ff, activation="gelu_tanh", bias=True),
    }
    return Spec(
        LanguageModel, vocab_size=vocab, d_model=width, layers=layers, norm="rms_offset", norm_eps=1e-6,
        parts={name: part for name, part in parts.items() if name in layers},
    )  # fmt: skip


register_model("griffin-7b", _spec(256000, 4096, ("RFRFAF" * 11)[:64], 5632, 32, 1024, 12288), family=FAMILY, parameters=7_795_144_704)
register_model("hawk-7b", _spec(256000, 4096, "(RF)*32", 5632, 32, 1024, 12288), family=FAMILY, parameters=8_161_562_624)
register_model("griffin-tiny", _spec(31, 16, "RFA", 24, 2, 6, 20), family=FAMILY, tiny=True)
