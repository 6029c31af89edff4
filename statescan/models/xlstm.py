"""xLSTM language models: the released 7B, and the small ones with which the original shows that sLSTM tracks parity and mLSTM does not."""

from __future__ import annotations

from statescan.heads import LanguageModel
from statescan.layers import GatedMLP
from statescan.mixers import MLSTM, SLSTM, MLSTMBlock
from statescan.registry import Family, register_model
from statescan.spec import Spec

FAMILY = Family(
    name="xlstm",
    introduces=("MLSTM", "MLSTMBlock", "SLSTM"),
    title="xLSTM: Extended Long Short-Term Memory",
    url="https://arxiv.org/abs/2405.04517",
    bibtex="""@inproceedings{beck2024xlstm,
  title={{xLSTM}: Extended Long Short-Term Memory},
  author={Beck, Maximilian and P{\\"o}ppel, Korbinian and Spanring, Markus and Auer, Andreas and Prudnikova, Oleksandra and
    Kopp, Michael and Klambauer, G{\\"u}nter and Brandstetter, Johannes and Hochreiter, Sepp},
  booktitle={Advances in Neural Information Processing Systems},
  year={2024}
}
@inproceedings{beck2025xlstm7b,
  title={{xLSTM 7B}: A Recurrent {LLM} for Fast and Efficient Inference},
  author={Beck, Maximilian and P{\\"o}ppel, Korbinian and Lippe, Phillip and Kurle, Richard and Blies, Patrick M. and
    Klambauer, G{\\"u}nter and B{\\"o}ck, Sebastian and Hochreiter, Sepp},
  booktitle={International Conference on Machine Learning},
  year={2025}
}""",
    exact="Layers, wiring, gates at first, parameter counts.",
    deviates="Projections into the residual stream start as in the other models here, not with the variance of the publication.",
)

register_model(
    "xlstm-7b",
    Spec(
        LanguageModel, vocab_size=50304, d_model=4096, layers="(XF)*32",
        parts={"X": Spec(MLSTM, num_heads=8), "F": Spec(GatedMLP, d_ff=10944)}, norm_eps=1e-6, tie_embeddings=False, logit_cap=30.0,
    ),
    family=FAMILY,
    parameters=6_865_424_896,
)  # fmt: skip

_BLOCKS = {
    "M": Spec(MLSTMBlock, num_heads=1),
    "S": Spec(SLSTM, num_heads=1),
    "T": Spec(SLSTM, num_heads=1, depth=1.0),
    "F": Spec(GatedMLP, d_ff=128, activation="gelu"),
}

for _name, _layers, _count in (("10", "MM", 56_132), ("11", "MTF", 86_402), ("01", "SFTF", 116_672)):
    register_model(
        f"xlstm-parity-{_name}",
        Spec(
            LanguageModel, vocab_size=3, d_model=64, layers=_layers, parts={part: _BLOCKS[part] for part in sorted(set(_layers))},
            tie_embeddings=False, norm="layer_offset",
        ),
        family=FAMILY,
        parameters=_count,
    )  # fmt: skip

register_model(
    "xlstm-tiny",
    Spec(
        LanguageModel, vocab_size=61, d_model=32, layers="XFS",
        parts={
            "X": Spec(MLSTM, num_heads=2, igate_bias_init=3.0),
            "S": Spec(SLSTM, num_heads=4),
            "F": Spec(GatedMLP, d_ff=48),
        },
        tie_embeddings=False, norm="layer_offset", logit_cap=30.0,
    ),
    family=FAMILY,
    tiny=True,
)  # fmt: skip
