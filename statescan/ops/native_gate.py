"""The one door to the compiled CPU kernels: everything unsafe happens here or is written with what stands here.

A tensor crosses as ``view(tensor)``: address, type and strides. Callers keep every tensor alive during the call and allocate outputs and
temporaries; the binding releases the GIL. Kernels take the thread count as an argument, because a new Python thread does not inherit
``torch.set_num_threads`` in OpenMP, and use the OpenMP runtime that torch has loaded: they bring none of their own.

Environment: ``STATESCAN_CPU=baseline|avx2|avx512`` forces an instruction set; ``STATESCAN_REQUIRE_NATIVE=1`` makes this import raise
when the kernels are not compiled (otherwise ``native`` refuses, with the reason).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from statescan.ops import pages

_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.bool: 2, torch.complex64: 3, torch.int32: 0, torch.int8: 4, torch.uint8: 5}
_PLAIN = (Tensor, torch.nn.Parameter)


def _load() -> tuple[ModuleType | None, str | None]:
    """The compiled module, or the reason why there is none."""
    try:
        kernels = import_module("statescan._native")
    except ImportError as error:
        return None, (
            f"the compiled kernels are not installed ({error}): install a C++17 compiler (GCC or Clang) and run "
            "`pip install --force-reinstall --no-deps -v statescan`, which prints the build log"
        )
    wanted = os.environ.get("STATESCAN_CPU", "")
    if wanted not in ("", "baseline", "avx2", "avx512"):
        raise ValueError(f"STATESCAN_CPU must be baseline, avx2 or avx512; got {wanted!r}")
    kernels.choose(wanted)
    return kernels, None


def _find_openmp(module: ModuleType) -> str | None:
    """Hand the kernels the OpenMP runtime in the process: torch's own copy, or the system's where torch was built against that."""
    folder = Path(str(torch.__file__)).parent / "lib"
    folders = (folder, folder.parent.parent / "torch.libs")
    own = [str(path) for f in folders if f.is_dir() for path in sorted(f.iterdir()) if re.match(r"lib(gomp|iomp5|omp)\b.*\.so", path.name)]
    return next((name for name in [*own, "libgomp.so.1", "libiomp5.so", "libomp.so"] if module.find_openmp(name)), None)


module, unavailable = _load()
"""The compiled module, or None; and then the reason why there is none."""
if module is None and os.environ.get("STATESCAN_REQUIRE_NATIVE") == "1":
    raise ImportError(f"STATESCAN_REQUIRE_NATIVE=1, but {unavailable}")

openmp = None if module is None else _find_openmp(module)
"""The OpenMP runtime that the kernels share with torch; None (then they run on one thread) where none was found."""
CHUNK = 64 if module is None else module.CHUNK
SCAN_CHUNK = 32 if module is None else module.SCAN_CHUNK
TILE = 64 if module is None else module.TILE
HEADS = 4 if module is None else module.HEADS
TOGETHER = 4 if module is None else module.TOGETHER


def instruction_set() -> str | None:
    """Which kernels run on this processor, for ``statescan doctor``."""
    return None if module is None else module.instruction_set()


# -- may it run ---------------------------------------------------------------------------------------------------------------


def refuse(dtypes: Sequence[torch.dtype], **tensors: Tensor | None) -> str | None:
    """Why the kernels cannot take these tensors (metadata only), or None."""
    if unavailable is not None:
        return unavailable
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.device.type != "cpu":
            return f"{name} is on {tensor.device}; the native kernels run on a CPU"
        if tensor.dtype not in dtypes:
            return f"{name} is {tensor.dtype}; the native kernels take {', '.join(str(d).removeprefix('torch.') for d in dtypes)}"
        if tensor.layout != torch.strided:
            return f"{name} is {tensor.layout}; the native kernels take strided tensors"
    if torch.compiler.is_compiling():
        return None
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "a functorch transform is active"
    if forward_ad._current_level >= 0:
        for name, tensor in tensors.items():
            if tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None:
                return f"{name} carries a tangent; the native kernels have no forward-mode derivative"
    return None


def plain(*tensors: Tensor | None) -> bool:
    """Whether these are ordinary tensors, and nothing traces or watches what is done with them."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() or torch._C._get_tracing_state() is not None:
        return False
    return all(tensor is None or type(tensor) in _PLAIN for tensor in tensors)


def transformed() -> bool:
    """Whether a transform of ``torch.func`` is at work, or forward-mode differentiation."""
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def in_memory(*cotangents: Tensor | None) -> bool:
    """Whether a kernel can read them: several side by side (``is_grads_batched``) are none of theirs."""
    return plain(*cotangents) and not any(c is not None and torch._C._functorch.is_legacy_batchedtensor(c) for c in cotangents)


def direct(*tensors: Tensor | None) -> bool:
    """Whether the binding may be called without the dispatcher: plain tensors, and no backward that may follow."""
    return plain(*tensors) and not needs_gradient(*tensors)


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Whether a backward may follow."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def threads(operations: int) -> int:
    """How many threads a call is worth: waking a second one costs as much as about a million operations. Bits do not depend on it."""
    return torch.get_num_threads() if operations > 1_000_000 else 1


# -- across the border --------------------------------------------------------------------------------------------------------


def view(tensor: Tensor | None) -> tuple[int, ...]:
    """Address, type and strides (in elements); empty for None."""
    return () if tensor is None else (tensor.data_ptr(), _TYPES[tensor.dtype], *tensor.stride())


def rows(tensor: Tensor) -> Tensor:
    """The tensor with conjugation and negation carried out and its last axis contiguous; itself where possible."""
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg()
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def rows_or_none(tensor: Tensor | None) -> Tensor | None:
    """:func:`rows` of what is there."""
    return None if tensor is None else rows(tensor)


def like(tensor: Tensor | None) -> Tensor | None:
    """A contiguous buffer for a gradient of this tensor."""
    return None if tensor is None else pages.empty(tensor.shape, dtype=tensor.dtype)


def or_empty(tensor: Tensor | None) -> Tensor:
    """An op cannot return None: an absent output is an empty tensor."""
    return torch.empty(0) if tensor is None else tensor


def fake_like(tensor: Tensor | None, other: Tensor) -> Tensor:
    """What :func:`or_empty` of :func:`like` looks like to a tracer."""
    return other.new_empty(0, dtype=torch.float32) if tensor is None else other.new_empty(tensor.shape, dtype=tensor.dtype)


def floats(tensor: Tensor | None) -> Tensor | None:
    """A float32 copy of a parameter, or itself; outside the op, so that autograd sees the cast."""
    return None if tensor is None else tensor.float()


# -- registration -------------------------------------------------------------------------------------------------------------


_library = torch.library.Library("statescan", "FRAGMENT")


def register(
    name: str,
    schema: str,
    forward: Callable[..., tuple[Tensor, ...]],
    fake: Callable[..., tuple[Tensor, ...]],
    backward_schema: str,
    backward: Callable[..., tuple[Tensor, ...]],
    fake_backward: Callable[..., tuple[Tensor, ...]],
    setup: Callable[[Any, tuple[Any, ...], tuple[Tensor, ...]], None],
    gradients: Callable[..., tuple[Tensor | None, ...]],
    *,
    kind: str = "native",
    devices: str | Sequence[str] = "cpu",
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Make ``statescan::name`` and ``statescan::name_backward`` known to torch: compile, export, fake tensors, autograd.

    Kernels of another ``kind`` carry it in their names: ``statescan::name_triton``.

    Under autocast an unregistered rule falls through: the op runs in its inputs' dtypes, which is what we want.
    """

    def second(ctx: Any, *grads: Tensor | None) -> None:
        raise RuntimeError(f"the {kind} {name} has no second derivative: run it inside `with statescan.implementation({name}='portable')`")

    def nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    full = name if kind == "native" else f"{name}_{kind}"
    return (
        _define(full, schema, forward, fake, devices, gradients, lambda ctx, inputs, output: setup(ctx, inputs, output)),
        _define(f"{full}_backward", backward_schema, backward, fake_backward, devices, second, nothing),
    )


def _define(name: str, schema: str, kernel: Any, fake: Any, devices: Any, gradients: Any, setup: Any) -> Callable[..., Any]:
    """``torch.library.custom_op``, but for its import of dynamo (1.3 s and 160 MiB) at the first call, and for the dispatcher's time (a
    tenth of a millisecond, forwards and backwards) where plain tensors need nothing of it.
    """
    kernel = _untraced(kernel)
    _library.define(name + schema, tags=torch.Tag.pt2_compliant_tag)
    full = f"statescan::{name}"
    torch.library.impl(full, devices, kernel, lib=_library)
    torch.library.register_fake(full, fake, lib=_library)
    torch.library.register_autograd(full, gradients, setup_context=setup, lib=_library)
    operator = getattr(torch.ops.statescan, name).default

    def recorded(ctx: Any, *arguments: Any) -> Any:
        output = kernel(*arguments)
        setup(ctx, arguments, output)
        return output

    functions = {"forward": staticmethod(recorded), "backward": staticmethod(gradients)}
    node: Any = type(name.title().replace("_", ""), (torch.autograd.Function,), functions)

    def call(*arguments: Any) -> Any:
        tensors = [a for a in arguments if isinstance(a, Tensor)]
        if not in_memory(*tensors) or transformed() or any(t.is_conj() or t.is_neg() for t in tensors):
            return operator(*arguments)
        return node.apply(*arguments) if needs_gradient(*tensors) else kernel(*arguments)

    return call


def _untraced(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel, hidden from dynamo where that has been imported."""
    hidden = None

    def call(*arguments: Any) -> Any:
        nonlocal hidden
        if "torch._dynamo" not in sys.modules:
            return kernel(*arguments)
        if hidden is None:
            hidden = torch.compiler.disable(kernel)
        return hidden(*arguments)

    return call
