"""Argument checks shared by the ops: every message says what was got and what was expected."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def check_shape(name: str, tensor: Tensor, shape: Sequence[int | str]) -> None:
    """Compare a tensor with a shape; a string stands for any size."""
    if tensor.shape == shape:
        return
    if tensor.ndim != len(shape) or any(isinstance(s, int) and t != s for t, s in zip(tensor.shape, shape, strict=False)):
        raise ValueError(f"{name} must have shape ({', '.join(map(str, shape))}); got {tuple(tensor.shape)}")


def check_positive(**sizes: float) -> None:
    """Sizes of a layer, by name."""
    for name, size in sizes.items():
        if not size > 0:
            raise ValueError(f"{name} must be positive; got {size}")


def check_range(**ranges: tuple[float, float]) -> None:
    """Of positive numbers, by name."""
    for name, (low, high) in ranges.items():
        if not 0 < low <= high:
            raise ValueError(f"{name} must be two positive numbers, the smaller first; got {(low, high)}")


def state_dtype(x: Tensor) -> torch.dtype:
    """States are float32, or float64 (complex64, complex128) when the input is."""
    if x.is_complex():
        return x.dtype
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def exactly(x: Tensor) -> AbstractContextManager[object]:
    """Inside, products keep the dtypes they are given, whatever autocast says. (The meta device knows no autocast.)"""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def broadcast_state(name: str, state: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A state of the full shape: zeros for None, expanded over the batch if it lacks that axis."""
    if state is None:
        return torch.zeros(shape, dtype=dtype, device=device)
    # By the number of axes first: comparing the batch with the next axis would tie a traced graph to the batch it was traced with.
    if tuple(state.shape) != (shape if state.ndim == len(shape) else shape[1:]):
        raise ValueError(f"{name} must have shape {shape}; got {tuple(state.shape)}: is it the state of another layer or batch?")
    return state.to(dtype).expand(shape)


def group(name: str, tensor: Tensor, batch: int, length: int, n: int, width: int) -> Tensor:
    """(B, L, N) or (B, L, G, N) to (B, L, G, N), with G dividing the width (channels or heads)."""
    if tensor.ndim == 3:
        tensor = tensor.unsqueeze(2)
    check_shape(name, tensor, (batch, length, "G", n))
    if width % tensor.shape[2]:
        raise ValueError(f"{name} has {tensor.shape[2]} groups, which do not divide {width}")
    return tensor
