"""A function whose loops depend on the length, as one operator for compilers: a traced graph must serve every length."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]


def opaque(name: str, function: Callable[..., Tensors], arguments: str, like: Callable[..., Tensors], results: int) -> Callable[..., Any]:
    """``function``, registered as ``statescan::name``; the backward pass runs it again.

    Args:
        name: of the operator.
        function: takes tensors, tensors or None, and numbers; gives floating-point tensors, and torch can differentiate it.
        arguments: its arguments as a schema: ``"Tensor q, Tensor? reset, int iterations"``.
        like: from the same arguments, tensors of the shapes and dtypes of the results.
        results: how many tensors it gives. The operator gives a single one bare.
    """
    places = [i for i, part in enumerate(arguments.split(",")) if part.split()[0].startswith("Tensor")]

    def moving(given: tuple[Any, ...]) -> list[int]:
        """Arguments that have a derivative."""
        return [i for i in places if given[i] is not None and given[i].is_floating_point()]

    def bare(found: Tensors) -> Any:
        return found if results > 1 else found[0]

    def forward(*given: Any) -> Any:
        return bare(tuple(_own(result) for result in function(*given)))

    def backward(*both: Any) -> Tensors:
        cotangents, given = both[:results], both[results:]
        wanted = moving(given)

        def of_them(*tensors: Tensor) -> Tensors:
            complete = dict(enumerate(given)) | dict(zip(wanted, tensors, strict=True))
            return tuple(function(*complete.values()))

        pulled = torch.func.vjp(of_them, *(given[i] for i in wanted))[1](cotangents)
        found = dict(zip(wanted, pulled, strict=True))
        return tuple(_own(found[i]) if i in found else cotangents[0].new_empty(0) for i in places)

    def backward_like(*both: Any) -> Tensors:
        given = both[results:]
        present = moving(given)
        return tuple(_fresh(given[i]) if i in present else both[0].new_empty(0) for i in places)

    returned = f"({', '.join(['Tensor'] * results)})" if results > 1 else "Tensor"
    operator = torch.library.custom_op(f"statescan::{name}", forward, mutates_args=(), schema=f"({arguments}) -> {returned}")
    cotangents = ", ".join(f"Tensor cotangent_{i}" for i in range(results))
    derivative = torch.library.custom_op(
        f"statescan::{name}_backward", backward, mutates_args=(),
        schema=f"({cotangents}, {arguments}) -> ({', '.join(['Tensor'] * len(places))})",
    )  # fmt: skip
    operator.register_fake(lambda *given: bare(tuple(_fresh(tensor) for tensor in like(*given))))
    derivative.register_fake(backward_like)

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.numbers = {i: value for i, value in enumerate(inputs) if i not in places}
        ctx.save_for_backward(*(inputs[i] for i in places))

    def pull(ctx: Any, *given: Tensor) -> tuple[Tensor | None, ...]:
        saved = dict(zip(places, ctx.saved_tensors, strict=True)) | ctx.numbers
        complete = tuple(saved[i] for i in sorted(saved))
        found = dict(zip(places, derivative(*given, *complete), strict=True))
        present = moving(complete)
        return tuple(found[i] if i in present else None for i in sorted(saved))

    operator.register_autograd(pull, setup_context=keep)
    return operator


def _own(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)


def _fresh(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)
