"""No rows at all, as a shard or a filter may leave them: right shapes, forward and backward, whatever the number of threads."""

from __future__ import annotations

import importlib
import inspect

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from statescan import ops
from statescan.ops import native_gate as gate
from statescan.ops.dispatch import implementation

SCANS = (
    "causal_conv1d", "diagonal_scan", "selective_scan", "ssd", "linear_attention", "delta_rule", "mlstm", "slstm", "mamba3", "log_linear",
    "mesa",
)  # fmt: skip
NATIVE = () if gate.module is None else [(op, "native") for op in SCANS]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("op", "name"), [*((op, "portable") for op in (*SCANS, "linear_system")), *NATIVE])
def test_no_rows(op: str, name: str, threads: int) -> None:
    torch.set_num_threads(threads)
    module, function, leaves = importlib.import_module(f"statescan.ops.{op}.cases"), getattr(ops, op), []

    def leaf(value: object) -> object:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        leaves.append(value.requires_grad_())
        return value

    for case in (module.CASES[0], next(case for case in module.CASES if case.name == "everything")):
        leaves.clear()
        arguments = module.make(case._replace(sizes={**case.sizes, "B": 0}), torch.float32)
        line = arguments.pop("timeline", None)
        arguments = {key: pytree.tree_map(leaf, value) for key, value in arguments.items()}
        if "return_state" in inspect.signature(function).parameters:
            arguments["return_state"] = True
        with implementation(name):
            y, *states = pytree.tree_leaves(function(**arguments, timeline=line))
        assert y.shape[:2] == (0, case.sizes["L"])
        assert all(state.shape[0] == 0 for state in states)
        sum(part.sum() for part in (y, *states)).backward()
        assert leaves
        for given in leaves:
            assert given.grad is not None
            assert given.grad.shape == given.shape
            assert not given.grad.any()
