"""Names a paper and fills in the numbers: citation, variants, published facts to test."""

from statescan.models import falcon, granite, lfm2, mamba, mamba2, recurrent_gemma, rwkv7, vmamba

__all__ = ["falcon", "granite", "lfm2", "mamba", "mamba2", "recurrent_gemma", "rwkv7", "vmamba"]
