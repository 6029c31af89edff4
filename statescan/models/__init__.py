"""Names a paper and fills in the numbers: citation, variants, published facts to test."""

from statescan.models import granite, lfm2, mamba, mamba2, recurrent_gemma, vmamba

__all__ = ["granite", "lfm2", "mamba", "mamba2", "recurrent_gemma", "vmamba"]
