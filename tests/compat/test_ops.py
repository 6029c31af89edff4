"""The drop-in functions against loops over positions in the originals' layouts, in float64: outputs, last states and gradients."""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from statescan.compat.mamba_ssm import causal_conv1d_fn, mamba_chunk_scan_combined, selective_scan_fn

BATCH, WIDTH, LENGTH, STATES, HEADS, HEADDIM, GROUPS = 2, 6, 11, 3, 4, 3, 2


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=dtype)


def close(got: Tensor, expected: Tensor, what: str = "") -> None:
    torch.testing.assert_close(got, expected, atol=1e-9, rtol=1e-9, msg=lambda message: f"{what}: {message}")


def test_argument_lists() -> None:
    expected = {
        selective_scan_fn: "u delta A B C D=None z=None delta_bias=None delta_softplus=False return_last_state=False",
        mamba_chunk_scan_combined: "x dt A B C chunk_size D=None z=None dt_bias=None initial_states=None seq_idx=None cu_seqlens=None "
        "dt_softplus=False dt_limit=(0.0,inf) return_final_states=False return_varlen_states=False state_dtype=None",
        causal_conv1d_fn: "x weight bias=None seq_idx=None initial_states=None return_final_states=False final_states_out=None "
        "activation=None",
    }
    for function, text in expected.items():
        parameters = inspect.signature(function).parameters.values()
        spelled = [p.name if p.default is p.empty else f"{p.name}={str(p.default).replace(' ', '')}" for p in parameters]
        assert spelled == text.split(), function


# -- selective_scan_fn ------------------------------------------------------------------------------------------------------


def scan_loop(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Any, z: Any, bias: Any, softplus: bool
) -> tuple[Tensor, Tensor]:
    """B and C of any layout; channels before positions."""
    delta = delta if bias is None else delta + bias[:, None]
    delta = F.softplus(delta) if softplus else delta

    def at(tensor: Tensor, t: int) -> Tensor:
        """(B or 1, E, N)"""
        if tensor.ndim == 2:
            return tensor[None]
        if A.is_complex():
            tensor = torch.complex(tensor[..., ::2], tensor[..., 1::2])
        if tensor.ndim == 3:
            return tensor[:, None, :, t]
        return tensor[..., t].repeat_interleave(WIDTH // tensor.shape[1], dim=1)

    h = torch.zeros(BATCH, WIDTH, STATES, dtype=A.dtype)
    outputs = []
    for t in range(u.shape[2]):
        h = torch.exp(delta[:, :, t, None] * A) * h + delta[:, :, t, None] * u[:, :, t, None] * at(B, t)
        y = (h * at(C, t)).sum(-1)
        outputs.append(2 * y.real if A.is_complex() else y)
    y = torch.stack(outputs, dim=2)
    y = y if D is None else y + D[:, None] * u
    return y if z is None else y * F.silu(z), h


LAYOUTS = {"constant": (WIDTH, STATES), "varying": (BATCH, STATES, LENGTH), "grouped": (BATCH, GROUPS, STATES, LENGTH)}


@pytest.mark.parametrize("layout_B", LAYOUTS)
@pytest.mark.parametrize("layout_C", LAYOUTS)
@pytest.mark.parametrize("extras", [False, True])
def test_selective_scan(layout_B: str, layout_C: str, extras: bool) -> None:
    u, delta, z = (random(BATCH, WIDTH, LENGTH, seed=i) for i in range(3))
    inputs = {
        "u": u,
        "delta": delta if extras else delta.exp(),
        "A": -random(WIDTH, STATES).exp(),
        "B": random(*LAYOUTS[layout_B], seed=3),
        "C": random(*LAYOUTS[layout_C], seed=4),
        "D": random(WIDTH) if extras else None,
        "z": z if extras else None,
        "delta_bias": random(WIDTH, seed=5) if extras else None,
    }
    tensors = {name: tensor.requires_grad_() for name, tensor in inputs.items() if tensor is not None}
    out, last = selective_scan_fn(**inputs, delta_softplus=extras, return_last_state=True)
    expected, state = scan_loop(*inputs.values(), extras)
    assert out.shape == u.shape
    close(out, expected, "out")
    close(last, state, "last_state")
    close(selective_scan_fn(**inputs, delta_softplus=extras), expected, "out alone")
    weights = random(BATCH, WIDTH, LENGTH, seed=6), random(BATCH, WIDTH, STATES, seed=7)
    got = torch.autograd.grad((out * weights[0]).sum() + (last * weights[1]).sum(), list(tensors.values()))
    wanted = torch.autograd.grad((expected * weights[0]).sum() + (state * weights[1]).sum(), list(tensors.values()))
    for name, a, b in zip(tensors, got, wanted, strict=True):
        close(a, b, f"gradient of {name}")


@pytest.mark.parametrize("layout_B", LAYOUTS)
@pytest.mark.parametrize("layout_C", LAYOUTS)
def test_the_complex_variant(layout_B: str, layout_C: str) -> None:
    """Single precision, as the original computes it."""

    def maps(layout: str, seed: int) -> Tensor:
        shape = LAYOUTS[layout]
        if layout == "constant":
            return torch.complex(random(*shape, seed=seed, dtype=torch.float32), random(*shape, seed=seed + 1, dtype=torch.float32))
        return random(*shape[:-1], 2 * LENGTH, seed=seed, dtype=torch.float32)

    u, delta, z = (random(BATCH, WIDTH, LENGTH, seed=i, dtype=torch.float32) for i in range(3))
    A = torch.complex(-random(WIDTH, STATES, dtype=torch.float32).exp(), random(WIDTH, STATES, seed=9, dtype=torch.float32))
    D = random(WIDTH, dtype=torch.float32)
    inputs = (u, delta, A, maps(layout_B, 3), maps(layout_C, 5), D, z, random(WIDTH, seed=8, dtype=torch.float32))
    out, last = selective_scan_fn(*inputs, delta_softplus=True, return_last_state=True)
    expected, state = scan_loop(*inputs, True)
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(last, state, atol=1e-4, rtol=1e-4)


def test_selective_scan_in_half_precision() -> None:
    """Inputs in bfloat16, A and the bias in float32, as in mixed-precision training; the state is float32."""
    u, delta, z = (random(BATCH, WIDTH, LENGTH, seed=i, dtype=torch.float32) for i in range(3))
    A, B, C = (
        -random(WIDTH, STATES, dtype=torch.float32).exp(),
        *(random(BATCH, STATES, LENGTH, seed=i, dtype=torch.float32) for i in (3, 4)),
    )
    half = [t.bfloat16() for t in (u, delta, B, C, z)]
    out, last = selective_scan_fn(half[0], half[1], A, half[2], half[3], z=half[4], delta_softplus=True, return_last_state=True)
    expected, state = scan_loop(half[0].float(), half[1].float(), A, half[2].float(), half[3].float(), None, half[4].float(), None, True)
    assert out.dtype == torch.bfloat16
    assert last.dtype == torch.float32
    torch.testing.assert_close(out.float(), expected, atol=3e-2, rtol=2e-2)
    torch.testing.assert_close(last, state, atol=3e-2, rtol=2e-2)


def test_selective_scan_messages() -> None:
    u, A = random(BATCH, WIDTH, LENGTH), -random(WIDTH, STATES).exp()
    with pytest.raises(ValueError, match="u must have shape"):
        selective_scan_fn(u[0], u, A, A, A)
    with pytest.raises(ValueError, match="B must have shape"):
        selective_scan_fn(u, u, A, A[0], A)
    with pytest.raises(ValueError, match="C has 4 groups, which do not divide 6"):
        selective_scan_fn(u, u, A, A, random(BATCH, 4, STATES, LENGTH))


# -- mamba_chunk_scan_combined ----------------------------------------------------------------------------------------------


def chunk_inputs(batch: int = BATCH, length: int = LENGTH) -> dict[str, Any]:
    return {
        "x": random(batch, length, HEADS, HEADDIM),
        "dt": random(batch, length, HEADS),
        "A": -random(HEADS).exp(),
        "B": random(batch, length, GROUPS, STATES, seed=3),
        "C": random(batch, length, GROUPS, STATES, seed=4),
    }


def chunk_loop(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *, D: Any = None, z: Any = None, bias: Any = 0.0, limit: Any = None,
    initial: Any = None, softplus: bool = True,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    delta = F.softplus(dt + bias) if softplus else dt + bias
    delta = delta if limit is None else delta.clamp(*limit)
    B, C = (t.repeat_interleave(HEADS // GROUPS, dim=2) for t in (B, C))
    h = torch.zeros(x.shape[0], HEADS, HEADDIM, STATES, dtype=x.dtype) if initial is None else initial
    outputs = []
    for t in range(x.shape[1]):
        decay = torch.exp(delta[:, t] * A)[..., None, None]
        h = decay * h + (delta[:, t, :, None] * x[:, t])[..., None] * B[:, t, :, None]
        outputs.append((h * C[:, t, :, None]).sum(-1))
    y = torch.stack(outputs, dim=1)
    if D is not None:
        y = y + (D[:, None] if D.ndim == 1 else D) * x
    return y if z is None else y * F.silu(z), h


@pytest.mark.parametrize("chunk_size", [1, 4, 11, 64])
@pytest.mark.parametrize("per_channel", [False, True])
def test_chunk_scan(chunk_size: int, per_channel: bool) -> None:
    inputs = chunk_inputs()
    options = {
        "D": random(HEADS, HEADDIM) if per_channel else random(HEADS),
        "z": random(BATCH, LENGTH, HEADS, HEADDIM, seed=5),
        "dt_bias": random(HEADS, seed=6),
        "initial_states": random(BATCH, HEADS, HEADDIM, STATES),
    }
    tensors = {**inputs, **options}
    for tensor in tensors.values():
        tensor.requires_grad_()
    limit = (0.1, 0.8)
    out, last = mamba_chunk_scan_combined(
        **inputs, chunk_size=chunk_size, **options, dt_softplus=True, dt_limit=limit, return_final_states=True
    )
    expected, state = chunk_loop(
        **inputs, D=options["D"], z=options["z"], bias=options["dt_bias"], limit=limit, initial=options["initial_states"]
    )
    assert out.shape == inputs["x"].shape
    close(out, expected, "out")
    close(last, state, "final state")
    got = torch.autograd.grad(out.sum() + last.sum(), list(tensors.values()))
    wanted = torch.autograd.grad(expected.sum() + state.sum(), list(tensors.values()))
    for name, a, b in zip(tensors, got, wanted, strict=True):
        close(a, b, f"gradient of {name}")


def test_chunk_scan_returns_the_output_alone() -> None:
    inputs = chunk_inputs()
    inputs["dt"] = inputs["dt"].exp()
    close(mamba_chunk_scan_combined(**inputs, chunk_size=4), chunk_loop(**inputs, softplus=False)[0])


LENGTHS = [4, 1, 6]
NUMBERS = torch.arange(3).repeat_interleave(torch.tensor(LENGTHS))[None]
BORDERS = torch.tensor([0, 4, 5, 11], dtype=torch.int32)


def apart(inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Each document by itself: outputs end to end, and the state at the end of each."""
    pieces = []
    for start, stop in itertools.pairwise(BORDERS):
        pieces.append(chunk_loop(**{k: v if k == "A" else v[:, start:stop] for k, v in inputs.items()}))
    return torch.cat([y for y, _ in pieces], dim=1), torch.cat([h for _, h in pieces])


def test_chunk_scan_of_packed_documents() -> None:
    inputs = chunk_inputs(batch=1)
    expected, states = apart(inputs)
    run = {**inputs, "chunk_size": 4, "dt_softplus": True, "return_final_states": True}
    for packing in ({"seq_idx": NUMBERS}, {"cu_seqlens": BORDERS}, {"seq_idx": NUMBERS + 5, "cu_seqlens": BORDERS}):
        out, last = mamba_chunk_scan_combined(**run, **packing)
        close(out, expected, "out")
        close(last, states[-1:], "final state")
    _, last, ends = mamba_chunk_scan_combined(**run, cu_seqlens=BORDERS, return_varlen_states=True)
    close(last, states[-1:], "final state")
    close(ends, states, "states at the ends")


def test_an_initial_state_belongs_to_document_zero() -> None:
    inputs, initial = chunk_inputs(batch=1), random(1, HEADS, HEADDIM, STATES)
    plain, _ = apart(inputs)
    first, _ = chunk_loop(**{k: v if k == "A" else v[:, :4] for k, v in inputs.items()}, initial=initial)
    run = {**inputs, "chunk_size": 4, "dt_softplus": True, "initial_states": initial}
    close(mamba_chunk_scan_combined(**run, seq_idx=NUMBERS), torch.cat([first, plain[:, 4:]], dim=1))
    close(mamba_chunk_scan_combined(**run, seq_idx=NUMBERS + 1), plain)
    _, ends = mamba_chunk_scan_combined(**run, cu_seqlens=BORDERS, return_varlen_states=True)
    close(ends[0], chunk_loop(**{k: v if k == "A" else v[:, :4] for k, v in inputs.items()}, initial=initial)[1][0])


def test_chunk_scan_messages() -> None:
    inputs = chunk_inputs()
    with pytest.raises(ValueError, match="states are kept in float32"):
        mamba_chunk_scan_combined(**inputs, chunk_size=4, state_dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="needs cu_seqlens"):
        mamba_chunk_scan_combined(**inputs, chunk_size=4, return_varlen_states=True)
    with pytest.raises(ValueError, match="a batch of one row; got 2 rows"):
        mamba_chunk_scan_combined(**inputs, chunk_size=4, cu_seqlens=BORDERS)


# -- causal_conv1d_fn -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("taps", [1, 2, 4])
@pytest.mark.parametrize("activation", [None, "silu", "swish"])
@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize("length", [1, 2, LENGTH])
def test_convolution(taps: int, activation: str | None, carried: bool, length: int) -> None:
    x, weight, bias = random(BATCH, WIDTH, length), random(WIDTH, taps), random(WIDTH)
    before = random(BATCH, WIDTH, taps - 1) if carried else torch.zeros(BATCH, WIDTH, taps - 1, dtype=x.dtype)
    everything = torch.cat([before, x], dim=2)
    expected = F.conv1d(everything, weight[:, None], bias, groups=WIDTH)
    expected = expected if activation is None else F.silu(expected)
    initial = before if carried else None
    close(causal_conv1d_fn(x, weight, bias, initial_states=initial, activation=activation), expected)
    out, final = causal_conv1d_fn(x, weight, bias, initial_states=initial, return_final_states=True, activation=activation)
    close(out, expected)
    close(final, everything[:, :, length:])
    room = torch.full_like(before, float("nan"))
    _, written = causal_conv1d_fn(x, weight, bias, None, initial, True, room, activation)
    assert written is room
    close(room, everything[:, :, length:])


def test_convolution_of_packed_documents_and_padding() -> None:
    x, weight, bias = random(1, WIDTH, LENGTH), random(WIDTH, 4), random(WIDTH)
    expected = torch.cat([causal_conv1d_fn(piece, weight, bias) for piece in x.split(LENGTHS, dim=2)], dim=2)
    close(causal_conv1d_fn(x, weight, bias, seq_idx=NUMBERS), expected)
    padded = torch.cat([x, torch.full((1, WIDTH, 2), float("nan"), dtype=x.dtype)], dim=2)
    out = causal_conv1d_fn(padded, weight, bias, seq_idx=torch.cat([NUMBERS, torch.full((1, 2), -1)], dim=1))
    close(out, F.pad(expected, (0, 2)))


def test_convolution_messages() -> None:
    x, weight = random(1, WIDTH, LENGTH), random(WIDTH, 4)
    with pytest.raises(ValueError, match="activation must be None, 'silu' or 'swish'"):
        causal_conv1d_fn(x, weight, activation="relu")
    with pytest.raises(ValueError, match="seq_idx cannot be combined"):
        causal_conv1d_fn(x, weight, seq_idx=NUMBERS, return_final_states=True)
