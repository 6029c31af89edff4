"""The Triton kernels: run by Triton's interpreter in a process of its own, compiled for a GPU that is not there, and refused rightly."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from triton_compile import Recorder, compile_for

from statescan.ops import triton_gate
from statescan.ops.dispatch import implementation, ops

HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(triton_gate.UNAVAILABLE is not None, reason=str(triton_gate.UNAVAILABLE))
KERNELS = {
    "selective_scan": ("ends", "carry", "outputs", "pulls", "gradients"),
    "causal_conv1d": ("forward", "before_activation", "backward"),
}


@needs_triton
def test_the_interpreter_agrees_with_the_reference() -> None:
    """Triton reads the variable when it is imported, so the tests of ``interpreted_triton.py`` need a fresh process."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider", str(HERE / "interpreted_triton.py")]
    done = subprocess.run(command, env=environment, cwd=HERE.parent.parent, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def arguments_of(op: str, everything: bool) -> dict[str, Any]:
    """Checked and completed, as the implementations get them."""
    module = importlib.import_module(f"statescan.ops.{op}.cases")
    case = next(case for case in module.CASES if case.name == ("everything" if everything else "plain"))
    arguments = module.make(case, torch.bfloat16 if everything else torch.float32)
    seen: dict[str, Any] = {}

    class Stop(Exception):
        pass

    def spy(**given: Any) -> None:
        seen.update(given)
        raise Stop

    replaced = pytest.MonkeyPatch()
    replaced.setitem(ops[op].implementations, "reference", ops[op].implementations["reference"].__class__(spy, lambda **_: None))
    with replaced.context(), implementation("reference"), pytest.raises(Stop):
        getattr(importlib.import_module("statescan.ops"), op)(**arguments)
    replaced.undo()
    return seen


@needs_triton
@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("op", KERNELS)
def test_kernels_compile_for_a_gpu(op: str, everything: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(f"statescan.ops.{op}.triton_kernels")
    recorders = {name: Recorder(getattr(module, name)) for name in KERNELS[op]}
    for name, recorder in recorders.items():
        monkeypatch.setattr(module, name, recorder)
    arguments = arguments_of(op, everything)
    for value in arguments.values():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            value.requires_grad_()
    outputs = ops[op].implementations["triton"].run(**arguments)
    sum(out.float().sum() for out in outputs if out is not None).backward()
    for name, recorder in recorders.items():
        args, kwargs = recorder.launches[0] if recorder.launches else (None, {})
        if args is None:  # one chunk needs no pass over chunks
            assert name == "ends"
            continue
        compiled = compile_for(recorder.kernel, args, kwargs, 90)
        assert compiled.asm["cubin"]
        assert compiled.metadata.shared < 48 * 1024


@pytest.mark.parametrize("op", KERNELS)
def test_a_cpu_tensor_is_refused_with_a_reason(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_gate, "INTERPRETED", False)
    module = importlib.import_module(f"statescan.ops.{op}.cases")
    arguments = module.make(module.CASES[0])
    with implementation("triton"), pytest.raises(ValueError, match="x is on cpu; the Triton kernels run on CUDA"):
        getattr(importlib.import_module("statescan.ops"), op)(**arguments)


@pytest.mark.parametrize(
    ("found", "reason"), [(None, "triton is not installed"), ("3.2.0", "needs? 3.3 or newer"), ("3.3.1", None), ("4.0", None)]
)
def test_what_is_installed_decides(found: str | None, reason: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(_: str) -> str:
        if found is None:
            raise triton_gate.PackageNotFoundError
        return found

    monkeypatch.setattr(triton_gate, "version", version)
    got = triton_gate.why_not()
    if reason is None:
        assert got is None
    else:
        assert got is not None
        assert re.search(reason, got)
