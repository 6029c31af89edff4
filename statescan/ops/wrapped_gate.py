"""Kernels of other projects, used where they are installed: whether they may run. They are imported by the first CUDA tensor that asks.

They are never copied, and each takes only what its own documentation promises; the rest is refused with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

DEVICE = "cuda"


@cache
def _find(module: str, name: str) -> tuple[Callable[..., Any] | None, str | None]:
    """The function, or the reason why there is none."""
    package = module.partition(".")[0]
    if find_spec(package) is None:
        return None, f"{package} is not installed"
    try:
        return getattr(import_module(module), name), None
    except (ImportError, AttributeError) as error:
        return None, f"{package} is installed but {module}.{name} cannot be imported: {error}"


def function(module: str, name: str) -> Callable[..., Any]:
    """The function that :func:`refuse` has seen to be there."""
    found, reason = _find(module, name)
    assert found is not None, reason
    return found


def refuse(module: str, name: str, dtypes: Sequence[torch.dtype], **tensors: Tensor | None) -> str | None:
    """Why ``module.name`` cannot take these tensors (metadata only), or None."""
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
        return f"{name} is not known to compilers and functorch"
    for argument, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.device.type != DEVICE:
            return f"{argument} is on {tensor.device}; {name} runs on {DEVICE}"
        if tensor.dtype not in dtypes:
            return f"{argument} is {tensor.dtype}; {name} is used for {', '.join(str(d).removeprefix('torch.') for d in dtypes)}"
    return _find(module, name)[1]
