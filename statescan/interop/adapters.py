"""Low-rank adapters (LoRA): which modules of a model they belong on."""

from __future__ import annotations

from torch import nn

from statescan.protocols import Mixer


def lora_targets(model: nn.Module) -> list[str]:
    """Names of every projection inside the model's mixers, as ``target_modules`` of a ``peft.LoraConfig`` takes them.

    For Mamba: ``["dt_proj", "in_proj", "out_proj", "x_proj"]``; for Mamba-2: ``["in_proj", "out_proj"]``. All of them are called as
    modules on every path, so an adapter on any of them takes effect.
    """
    targets = {
        path.rpartition(".")[2]
        for mixer in model.modules()
        if isinstance(mixer, Mixer)
        for path, child in mixer.named_modules()
        if isinstance(child, nn.Linear)
    }
    if not targets:
        raise ValueError(f"{type(model).__name__} has no mixer with a projection to adapt")
    return sorted(targets)
