"""Names a paper and fills in the numbers: citation, variants, published facts to test."""

from statescan.models import (
    falcon,
    granite,
    jamba,
    lfm2,
    mamba,
    mamba2,
    nemotron_h,
    recurrent_gemma,
    rwkv7,
    vmamba,
)

__all__ = [
    "falcon",
    "granite",
    "jamba",
    "lfm2",
    "mamba",
    "mamba2",
    "nemotron_h",
    "recurrent_gemma",
    "rwkv7",
    "vmamba",
]
