"""The door to our Triton kernels: whether they may run, and what every launch needs. Triton itself is imported by the first launch.

``TRITON_INTERPRET=1`` (set before statescan is imported) makes Triton run them as NumPy on a CPU: slow, and a way to test and to
debug them without a GPU. Only then are CPU tensors accepted.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor
from torch.autograd import forward_ad

OLDEST = (3, 3)
"""Kernels take their tensors as a NamedTuple, which older versions do not know."""


def why_not() -> str | None:
    """Why there is no Triton to use, or None."""
    try:
        found = version("triton")
    except PackageNotFoundError:
        return "triton is not installed: `pip install triton` (Linux)"
    if tuple(int(part) for part in found.split(".")[:2]) < OLDEST:
        return f"triton {found} is installed; the kernels need {'.'.join(map(str, OLDEST))} or newer"
    return None


UNAVAILABLE = why_not()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether the kernels run as NumPy on a CPU."""


def refuse(dtypes: Sequence[torch.dtype], **tensors: Tensor | None) -> str | None:
    """Why the kernels cannot take these tensors (metadata only), or None."""
    device = "cpu" if INTERPRETED else "cuda"
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.device.type != device:
            where = "under TRITON_INTERPRET=1 the Triton kernels take CPU tensors" if device == "cpu" else "the Triton kernels run on CUDA"
            return f"{name} is on {tensor.device}; {where}"
        if tensor.dtype not in dtypes:
            return f"{name} is {tensor.dtype}; the Triton kernels take {', '.join(str(d).removeprefix('torch.') for d in dtypes)}"
        if tensor.layout != torch.strided:
            return f"{name} is {tensor.layout}; the Triton kernels take strided tensors"
    if UNAVAILABLE is not None or torch.compiler.is_compiling():
        return UNAVAILABLE
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "a functorch transform is active"
    if forward_ad._current_level >= 0:
        for name, tensor in tensors.items():
            if tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None:
                return f"{name} carries a tangent; the Triton kernels have no forward-mode derivative"
    return None


def on(tensor: Tensor) -> AbstractContextManager[object]:
    """Launch on the tensor's device, whichever is the current one."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def programs(tensor: Tensor, items: int) -> int:
    """How many programs with scratch of their own work through ``items``: enough to fill the device, so the scratch does not grow."""
    if not tensor.is_cuda:
        return min(items, 3)
    return min(items, 8 * torch.cuda.get_device_properties(tensor.device).multi_processor_count)


def flags(tensor: Tensor | None) -> Tensor | None:
    """A bool tensor as contiguous bytes."""
    return None if tensor is None else tensor.contiguous().view(torch.uint8)


def power_of_two(size: int) -> int:
    """The next one; tiles have such sides."""
    return 1 << (size - 1).bit_length()
