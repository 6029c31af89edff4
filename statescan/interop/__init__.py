"""Speaks other projects' names: checkpoint folders, the transformers bridge, adapters."""

from statescan.interop.pretrained import export_pretrained, from_pretrained, save_pretrained

__all__ = ["export_pretrained", "from_pretrained", "save_pretrained"]
