"""Kernels of other packages: fakes with their signatures and layouts, which compute with our float64 reference, prove how they are called.

What the fakes check is what the real functions check: shapes, strides, dtypes, and that nothing is passed that they do not know.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest
import torch
from test_implementations import cases_of, check_close, oracle, results
from torch import Tensor

from statescan import ops
from statescan.ops import wrapped_gate
from statescan.ops.case import Case
from statescan.ops.dispatch import implementation
from statescan.ops.dispatch import ops as registered

calls: list[str] = []


def selective_scan_fn(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, return_last_state=False):  # type: ignore[no-untyped-def]
    """u, delta, z: (B, E, L); B, C: (B, G, N, L). Starts from zeros."""
    calls.append("selective_scan_fn")
    batch, _, length = u.shape
    assert delta.shape == u.shape
    assert B.shape == C.shape == (batch, B.shape[1], A.shape[1], length)
    assert len({t.dtype for t in (u, delta, B, C)}) == 1
    assert A.dtype == torch.float32
    assert D is None or D.dtype == torch.float32
    wide = [t.double() for t in (u.mT, delta.mT, A, B.permute(0, 3, 1, 2), C.permute(0, 3, 1, 2))]
    gate = None if z is None else z.mT.double()
    with implementation("reference"):
        y, last = ops.selective_scan(*wide, D, z=gate, delta_bias=delta_bias, delta_softplus=delta_softplus, return_state=True)
    y = y.mT.to(u.dtype)
    return (y, last.detach().float()) if return_last_state else y


def mamba_chunk_scan_combined(  # type: ignore[no-untyped-def]
    x, dt, A, B, C, chunk_size, D=None, z=None, dt_bias=None, initial_states=None, seq_idx=None, cu_seqlens=None, dt_softplus=False,
    dt_limit=(0.0, float("inf")), return_final_states=False, return_varlen_states=False, state_dtype=None,
):  # fmt: skip
    """x (B, L, H, P); dt (B, L, H); B, C (B, L, G, N); states (B, H, P, N)."""
    calls.append("mamba_chunk_scan_combined")
    assert z is None
    assert seq_idx is None
    assert chunk_size & (chunk_size - 1) == 0
    assert x.dtype == B.dtype == C.dtype
    wide = [t.double() for t in (x, dt, A, B, C)]
    with implementation("reference"):
        y, last = ops.ssd(
            *wide, D, delta_bias=dt_bias, delta_softplus=dt_softplus, delta_limit=dt_limit, state=initial_states, return_state=True
        )
    return (y.to(x.dtype), last.float()) if return_final_states else y.to(x.dtype)


def chunk_simple_gla(q, k, v, g=None, g_gamma=None, scale=None, initial_state=None, output_final_state=False, state_v_first=False):  # type: ignore[no-untyped-def]
    """q, k (B, T, H, K); v (B, T, H, V); g (B, T, H) logarithms of decays; state (B, H, K, V)."""
    calls.append("chunk_simple_gla")
    assert q.shape == k.shape
    assert q.shape[:3] == v.shape[:3] == g.shape
    assert q.dtype == k.dtype == v.dtype
    assert initial_state.shape == (v.shape[0], v.shape[2], k.shape[3], v.shape[3])
    q, k, v_, g, h = (t.double() for t in (q, k, v, g, initial_state))
    scale = k.shape[-1] ** -0.5 if scale is None else scale
    out = []
    for t in range(q.shape[1]):
        h = g[:, t].exp()[..., None, None] * h + k[:, t].unsqueeze(-1) * v_[:, t].unsqueeze(-2)
        out.append((scale * q[:, t].unsqueeze(-1) * h).sum(-2))
    return torch.stack(out, 1).to(v.dtype), h.float() if output_final_state else None


def causal_conv1d_fn(  # type: ignore[no-untyped-def]
    x, weight, bias=None, seq_idx=None, initial_states=None, return_final_states=False, final_states_out=None, activation=None
):
    """x (B, E, L), neighbouring channels; states (B, E, K-1), likewise."""
    calls.append("causal_conv1d_fn")
    batch, width, _ = x.shape
    assert x.stride(1) == 1
    assert width % 8 == 0
    assert initial_states.shape == (batch, width, weight.shape[1] - 1)
    assert initial_states.stride(1) == 1
    assert initial_states.dtype == x.dtype
    assert bias is None or bias.dtype == weight.dtype
    with implementation("reference"):
        y, last = ops.causal_conv1d(x.mT.double(), weight, bias, activation=activation, state=initial_states.mT.double(), return_state=True)
    return y.mT.to(x.dtype), last.mT.to(x.dtype)


FAKES: dict[str, dict[str, Any]] = {
    "mamba_ssm": {},
    "mamba_ssm.ops": {},
    "mamba_ssm.ops.selective_scan_interface": {"selective_scan_fn": selective_scan_fn},
    "mamba_ssm.ops.triton": {},
    "mamba_ssm.ops.triton.ssd_combined": {"mamba_chunk_scan_combined": mamba_chunk_scan_combined},
    "fla": {},
    "fla.ops": {},
    "fla.ops.simple_gla": {"chunk_simple_gla": chunk_simple_gla},
    "causal_conv1d": {"causal_conv1d_fn": causal_conv1d_fn},
}


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    wrapped_gate._find.cache_clear()
    calls.clear()
    yield
    wrapped_gate._find.cache_clear()


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The packages, and a CPU in the role of the GPU."""
    for name, members in FAKES.items():
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        module.__path__ = []
        module.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(wrapped_gate, "DEVICE", "cpu")


F, BF = torch.float32, torch.bfloat16
WRAPPED = [
    ("selective_scan", "mamba_ssm", F), ("selective_scan", "mamba_ssm", BF), ("ssd", "mamba_ssm", BF), ("ssd", "fla", BF),
    ("causal_conv1d", "causal_conv1d", F), ("causal_conv1d", "causal_conv1d", BF),
]  # fmt: skip
FUNCTION = {
    ("selective_scan", "mamba_ssm"): "selective_scan_fn", ("ssd", "mamba_ssm"): "mamba_chunk_scan_combined",
    ("ssd", "fla"): "chunk_simple_gla", ("causal_conv1d", "causal_conv1d"): "causal_conv1d_fn",
}  # fmt: skip
LACKING = {"selective_scan": {"reset", "reset_to", "states"}, "ssd": {"reset", "reset_to", "chunks_of_5"}}
LACKING["causal_conv1d"] = {"reset", "mask"}


def suited(op: str, case: Case) -> Case:
    """The case without what the packages lack, at sizes they take."""
    sizes = dict(case.sizes)
    if op == "causal_conv1d":
        sizes["E"], sizes["K"] = 8, min(max(case.sizes["K"], 2), 4)
    return Case(case.name, sizes, tuple(option for option in case.options if option not in LACKING[op]))


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize(("op", "name", "dtype"), WRAPPED)
def test_agrees_with_the_reference(op: str, name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values, the last state, and every gradient, also through both states, in every case of the op."""
    module = cases_of(op)
    suits = [suited(op, case) for case in module.CASES]
    monkeypatch.setattr(module, "CASES", suits)
    for index, case in enumerate(suits):
        calls.clear()
        got = results(op, name, module.make(case, dtype))
        assert calls == [FUNCTION[op, name]]
        try:
            check_close(got, oracle.__wrapped__(op, index, dtype), registered[op].tolerance[dtype])
        except AssertionError as error:
            raise AssertionError(f"{case.name}: {error}") from error


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize(
    ("op", "name", "option", "reason"),
    [
        ("selective_scan", "mamba_ssm", "reset", "there are resets; selective_scan_fn cannot forget"),
        ("selective_scan", "mamba_ssm", "states", "return_states asks for every state"),
        ("ssd", "mamba_ssm", "reset", "there are resets; mamba_chunk_scan_combined"),
        ("ssd", "mamba_ssm", "chunks_of_5", "chunk_size is 5; mamba_chunk_scan_combined takes powers of two"),
        ("ssd", "fla", "reset", "there are resets; chunk_simple_gla"),
        ("ssd", "fla", "chunks_of_5", "chunk_size is given"),
        ("causal_conv1d", "causal_conv1d", "reset", "resets or a mask; causal_conv1d_fn"),
        ("causal_conv1d", "causal_conv1d", "mask", "resets or a mask; causal_conv1d_fn"),
    ],
)
def test_what_a_package_lacks_is_refused(op: str, name: str, option: str, reason: str) -> None:
    module = cases_of(op)
    case = suited(op, module.CASES[0])
    arguments = module.make(case._replace(options=(*case.options, option)), BF)
    with implementation(name), pytest.raises(ValueError, match=reason):
        getattr(ops, op)(**arguments)
    assert calls == []


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize(
    ("op", "name", "sizes", "dtype", "reason"),
    [
        ("selective_scan", "mamba_ssm", {"N": 300}, F, "N is 300"),
        ("selective_scan", "mamba_ssm", {}, torch.float64, "x is torch.float64; selective_scan_fn is used for float32, bfloat16"),
        ("ssd", "mamba_ssm", {}, F, "x is torch.float32; mamba_chunk_scan_combined is used for bfloat16"),
        ("ssd", "fla", {}, F, "x is torch.float32; chunk_simple_gla is used for bfloat16"),
        ("causal_conv1d", "causal_conv1d", {"K": 5}, F, "there are 5 taps"),
        ("causal_conv1d", "causal_conv1d", {"E": 12}, F, "there are 12 channels"),
    ],
)
def test_sizes_and_dtypes_it_does_not_take_are_refused(op: str, name: str, sizes: dict[str, int], dtype: torch.dtype, reason: str) -> None:
    module = cases_of(op)
    case = suited(op, module.CASES[0])
    arguments = module.make(case._replace(sizes=case.sizes | sizes), dtype)
    with implementation(name), pytest.raises(ValueError, match=reason):
        getattr(ops, op)(**arguments)


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize(("op", "name"), FUNCTION)
def test_a_cpu_a_compiler_and_a_broken_package_are_refused(op: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = cases_of(op)
    arguments = module.make(suited(op, module.CASES[0]), BF)
    function = FUNCTION[op, name]

    def refused(reason: str) -> None:
        wrapped_gate._find.cache_clear()
        with implementation(name), pytest.raises(ValueError, match=reason):
            getattr(ops, op)(**arguments)

    monkeypatch.setattr(wrapped_gate, "DEVICE", "cuda")
    refused(f"x is on cpu; {function} runs on cuda")
    monkeypatch.setattr(wrapped_gate, "DEVICE", "cpu")
    owner = next(module for module, members in FAKES.items() if function in members)
    monkeypatch.delattr(sys.modules[owner], function)
    refused(f"is installed but {owner}.{function} cannot be imported")
    monkeypatch.setattr(wrapped_gate, "find_spec", lambda _: None)
    refused(f"{name} is not installed")
    assert calls == []


def test_importing_the_ops_imports_none_of_them() -> None:
    for op in {op for op, _ in FUNCTION}:
        importlib.import_module(f"statescan.ops.{op}.wrapped")
    assert not {"mamba_ssm", "fla", "causal_conv1d"} & set(sys.modules)


@pytest.mark.usefixtures("fakes")
def test_a_package_stands_before_portable() -> None:
    """And its refusal is told."""
    x: Tensor = torch.randn(1, 5, 8).bfloat16()
    available = registered["causal_conv1d"].available(
        x=x, weight=torch.randn(8, 4), bias=None, activation=None, state=x[:, :3], reset=None, mask=None
    )
    assert list(available)[-3:] == ["causal_conv1d", "portable", "reference"]
    assert available["causal_conv1d"] is None
