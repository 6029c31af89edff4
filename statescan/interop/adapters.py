"""Low-rank adapters (LoRA) of the PEFT library on our models: where they belong, and to and from folders that PEFT reads.

Paper: Hu et al., "LoRA", 2021, https://arxiv.org/abs/2106.09685: a projection W x becomes W x + (alpha / rank) B A x with W frozen, A
random and B zero to begin with. Every projection of a model is called as a module on every path, so an adapter on any of them takes effect
on whole sequences, on chunks and on steps alike.
"""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from statescan.blocks import Residual
from statescan.files import read_safetensors, write_safetensors
from statescan.layers import QuantLinear
from statescan.layers.moe import Router
from statescan.protocols import Mixer
from statescan.registry import nearest

PathLike = str | os.PathLike[str]
_WEIGHTS = "adapter_model.safetensors"


def lora_targets(model: nn.Module) -> list[str]:
    """Names of every projection inside the model's blocks, as ``target_modules`` of a ``peft.LoraConfig`` takes them.

    For Mamba: ``["dt_proj", "in_proj", "out_proj", "x_proj"]``; for Mamba-2: ``["in_proj", "out_proj"]``. Feed-forward layers are blocks
    too. Not among them: embedding, head, and routers and experts, whose weights are no Linear's.
    """
    modules = dict(model.named_modules())
    inside = {id(child) for block in modules.values() if isinstance(block, (Mixer, Residual)) for child in block.modules()}
    wanted = {path for path, m in modules.items() if id(m) in inside and isinstance(m, nn.Linear) and not isinstance(m, Router)}
    if not wanted:
        raise ValueError(f"{type(model).__name__} has no mixer with a projection to adapt")
    clear: dict[str, bool] = {}  # whether every module whose path ends so is wanted
    targets = set()
    for path in wanted:
        words = path.split(".")
        for first in range(len(words) - 1, -1, -1):
            end = ".".join(words[first:])
            if end not in clear:
                clear[end] = all(other in wanted for other in modules if other == end or other.endswith(f".{end}"))
            if clear[end]:
                targets.add(end)
                break
    return sorted(targets)


def add_lora(model: nn.Module, *, rank: int = 16, alpha: float = 32.0, dropout: float = 0.0, targets: Sequence[str] = ()) -> Any:
    """Freeze a model and put an adapter on each projection named in ``targets`` (default: :func:`lora_targets`), in place.

    The ``peft.PeftModel`` around it. A target is the name of modules, or the end of it: ``in_proj``, ``layers.3.mixer.in_proj``.
    """
    peft = _peft()
    if rank < 1:
        raise ValueError(f"rank must be at least 1; got {rank}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1); got {dropout}")
    wanted = list(targets) or lora_targets(model)
    linears = {path: m for path, m in model.named_modules(remove_duplicate=False) if isinstance(m, nn.Linear)}
    owners = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    for target in wanted:
        found = [path for path in linears if path == target or path.endswith(f".{target}")]
        if not found:
            raise ValueError(f"no projection is named {target!r}{nearest(target, {path.rpartition('.')[2] for path in linears})}")
        quantized = next((path for path in found if isinstance(linears[path], QuantLinear)), None)
        if quantized is not None:
            raise ValueError(f"{quantized} is quantised, so an adapter could not be merged into it: take the model it was made from")
        tied = next((path for path in found if owners[id(linears[path].weight)] > 1), None)
        if tied is not None:
            raise ValueError(f"{tied} shares its weight with the embedding, so an adapter on it could not be merged: leave it out")
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=wanted)
    return peft.get_peft_model(model, config)


def save_adapter(adapted: Any, folder: PathLike, base: str | None = None) -> None:
    """Write what :func:`add_lora` added, in PEFT's files; ``base`` is the name or folder of the model below, which they mention."""
    config = copy.copy(adapted.peft_config["default"])
    config.inference_mode, config.base_model_name_or_path = True, base
    write_safetensors(Path(folder, _WEIGHTS), _peft().get_peft_model_state_dict(adapted), {"format": "pt"})
    config.save_pretrained(str(folder))


def read_adapter_into(adapted: Any, folder: PathLike) -> None:
    """Put back what :func:`save_adapter` wrote. Strict."""
    file = Path(folder, _WEIGHTS)
    tensors, _ = read_safetensors(file)
    expected = _peft().get_peft_model_state_dict(adapted)
    if {n: t.shape for n, t in tensors.items()} != {n: t.shape for n, t in expected.items()}:
        different = sorted(tensors.keys() ^ expected.keys()) or [n for n in tensors if tensors[n].shape != expected[n].shape]
        raise ValueError(f"{file} and the model differ in {len(different)} tensors, {different[0]} for one: it belongs to another model")
    _peft().set_peft_model_state_dict(adapted, tensors)


def load_adapter(model: nn.Module, folder: PathLike) -> Any:
    """A model with an adapter from a folder that :func:`save_adapter` or PEFT wrote: the ``peft.PeftModel`` around it, frozen."""
    return _peft().PeftModel.from_pretrained(model, str(folder)).eval()


def merge_adapter(adapted: Any) -> Any:
    """The model below with its adapters added into the weights, in place: an ordinary model again."""
    return adapted.merge_and_unload(safe_merge=True)


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ImportError("LoRA needs peft: pip install 'statescan[peft]'; or train the whole model with adapter='full'") from error
    return peft
