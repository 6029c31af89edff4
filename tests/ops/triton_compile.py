"""Compile Triton kernels without a GPU, from the very arguments that they would be launched with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.uint8: "*u8", torch.int32: "*i32", torch.int64: "*i64"}


class Recorder:
    """Stands in for a kernel: a launch is recorded, not run."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.launches: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        assert all(size > 0 for size in grid)
        return lambda *args, **kwargs: self.launches.append((args, kwargs))


def signature(value: Any, path: tuple[int, ...], constants: dict[tuple[int, ...], Any]) -> Any:
    """The type of an argument as Triton writes it; what is fixed when compiling goes to ``constants``, by its place."""
    if isinstance(value, Tensor):
        return TYPES[value.dtype]
    if isinstance(value, tuple):
        parts = [signature(part, (*path, i), constants) for i, part in enumerate(value)]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if value is None:
        constants[path] = None
        return "constexpr"
    return "fp32" if isinstance(value, float) else "i32"


def compile_for(kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any], capability: int) -> Any:
    """The compiled kernel, down to machine code (ptxas comes with Triton)."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants: dict[tuple[int, ...], Any] = {}
    options = {k: v for k, v in kwargs.items() if k == "num_warps"}
    types = {}
    for i, name in enumerate(kernel.arg_names):
        if i < len(args):
            types[name] = signature(args[i], (i,), constants)
        else:
            types[name], constants[(i,)] = "constexpr", kwargs[name]
    return triton.compile(ASTSource(fn=kernel, signature=types, constexprs=constants), GPUTarget("cuda", capability, 32), options)
