"""Names a paper and fills in the numbers: citation, variants, published facts to test."""

from statescan.models import mamba, mamba2, vmamba

__all__ = ["mamba", "mamba2", "vmamba"]
