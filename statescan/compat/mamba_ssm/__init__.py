"""The names of mamba_ssm (and causal_conv1d's one function), on any device: ``from statescan.compat.mamba_ssm import Mamba, Mamba2``.

Arguments, defaults, layouts, results and parameter names are the originals', so weights load both ways. What the layers can do beyond the
original: any size, a state that goes in (:meth:`Mamba.scan`), more than one token after the first call, gradient through states.

Its language models are read by :func:`statescan.from_pretrained`, and written by ``export_pretrained(model, folder, format="mamba_ssm")``.
"""

from statescan.compat.mamba_ssm.blocks import InferenceParams, Mamba, Mamba2
from statescan.compat.mamba_ssm.ops import causal_conv1d_fn, mamba_chunk_scan_combined, selective_scan_fn

__all__ = [
    "InferenceParams",
    "Mamba",
    "Mamba2",
    "causal_conv1d_fn",
    "mamba_chunk_scan_combined",
    "selective_scan_fn",
]
