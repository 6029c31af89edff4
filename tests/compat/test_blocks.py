"""The drop-in layers: the originals' constructors and parameter names, calls over packed rows, and caches that change in place."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

import statescan as ss
from statescan.compat import mamba_ssm as compat

LENGTHS = [5, 1, 3, 8]

# Name and default of every constructor argument of the originals, in order.
MAMBA = {
    "d_state": 16, "d_conv": 4, "expand": 2, "dt_rank": "auto", "dt_min": 0.001, "dt_max": 0.1, "dt_init": "random", "dt_scale": 1.0,
    "dt_init_floor": 1e-4, "conv_bias": True, "bias": False, "use_fast_path": True, "layer_idx": None, "device": None, "dtype": None,
}  # fmt: skip
MAMBA2 = {
    "d_state": 128, "d_conv": 4, "conv_init": None, "expand": 2, "headdim": 64, "d_ssm": None, "ngroups": 1, "A_init_range": (1, 16),
    "D_has_hdim": False, "rmsnorm": True, "norm_before_gate": False, "dt_min": 0.001, "dt_max": 0.1, "dt_init_floor": 1e-4,
    "dt_limit": (0.0, float("inf")), "bias": False, "conv_bias": True, "chunk_size": 256, "use_mem_eff_path": True, "layer_idx": None,
    "process_group": None, "sequence_parallel": True, "device": None, "dtype": None,
}  # fmt: skip


def make(name: str, **arguments: Any) -> Any:
    torch.manual_seed(0)
    cls = getattr(compat, name)
    sizes = {"Mamba": {"d_state": 5}, "Mamba2": {"d_state": 6, "headdim": 4, "ngroups": 3, "chunk_size": 4}}[name]
    return cls(12, **{"layer_idx": 0, **sizes, **arguments}).eval()


@pytest.fixture(params=["Mamba", "Mamba2"])
def layer(request: pytest.FixtureRequest) -> Any:
    return make(request.param)


def inputs(length: int = 17, rows: int = 2) -> Tensor:
    return torch.randn(rows, length, 12, generator=torch.Generator().manual_seed(1))


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("cls", "expected"), [(compat.Mamba, MAMBA), (compat.Mamba2, MAMBA2)])
def test_constructors(cls: type, expected: dict[str, Any]) -> None:
    parameters = list(inspect.signature(cls).parameters.values())
    assert parameters[0].name == "d_model"
    assert {p.name: p.default for p in parameters[1:]} == expected
    assert [p.name for p in parameters[1:]] == list(expected)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "Mamba",
            {
                "A_log": (24, 5), "D": (24,), "in_proj.weight": (48, 12), "conv1d.weight": (24, 1, 4), "conv1d.bias": (24,),
                "x_proj.weight": (11, 24), "dt_proj.weight": (24, 1), "dt_proj.bias": (24,), "out_proj.weight": (12, 24),
            },
        ),
        (
            "Mamba2",
            {
                "dt_bias": (6,), "A_log": (6,), "D": (6,), "in_proj.weight": (90, 12), "conv1d.weight": (60, 1, 4), "conv1d.bias": (60,),
                "norm.weight": (24,), "out_proj.weight": (12, 24),
            },
        ),
    ],
)  # fmt: skip
def test_parameter_names_and_shapes(name: str, expected: dict[str, tuple[int, ...]]) -> None:
    layer = make(name)
    assert {n: tuple(p.shape) for n, p in layer.named_parameters()} == expected
    ours = getattr(ss, name)(12, **{"Mamba": {"d_state": 5}, "Mamba2": {"d_state": 6, "headdim": 4, "ngroups": 3}}[name])
    ours.load_state_dict(layer.state_dict())
    close(ours.eval()(inputs()), layer(inputs()))


def test_device_and_dtype() -> None:
    layer = make("Mamba", dtype=torch.bfloat16)
    assert layer.in_proj.weight.dtype == torch.bfloat16
    assert layer.A_log.dtype == layer.D.dtype == torch.float32
    assert make("Mamba2", device="meta").in_proj.weight.is_meta


def test_the_state_goes_in_and_out(layer: Any) -> None:
    x = inputs()
    y, state = layer.scan(x[:, :6])
    rest, _ = layer.scan(x[:, 6:], state)
    close(torch.cat([y, rest], dim=1), layer(x))
    close(layer.scan(x, None, ss.Timeline.packed([[9, 8]] * 2))[0][:, 9:], layer(x[:, 9:]))


# -- caches -----------------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("prompt", [1, 2, 3, 9])
def test_prompt_then_steps_through_inference_params(layer: Any, prompt: int) -> None:
    x = inputs()
    expected = layer(x)
    params = compat.InferenceParams(max_seqlen=17, max_batch_size=2)
    close(layer(x[:, :prompt], inference_params=params), expected[:, :prompt])
    conv_state, _ = params.key_value_memory_dict[0]
    params.seqlen_offset = prompt
    for t in range(prompt, 17):
        close(layer(x[:, t : t + 1], inference_params=params), expected[:, t : t + 1])
        params.seqlen_offset += 1
    assert params.key_value_memory_dict[0][0] is conv_state  # changed in place
    params.reset(17, 2)
    close(layer(x[:, :prompt], inference_params=params), expected[:, :prompt])  # the old state is forgotten


@torch.no_grad()
@pytest.mark.parametrize("pieces", [(4, 6, 7), (1, 1, 15), (10, 2, 5)])
def test_many_tokens_after_the_first_call(layer: Any, pieces: tuple[int, ...]) -> None:
    x = inputs()
    params = compat.InferenceParams(17, 2)
    outputs = []
    for piece in x.split(pieces, dim=1):
        outputs.append(layer(piece, inference_params=params))
        params.seqlen_offset += piece.shape[1]
    close(torch.cat(outputs, dim=1), layer(x))


@torch.no_grad()
@pytest.mark.parametrize("prompt", [1, 2, 3, 4, 9])
def test_the_cache_holds_the_convolution_inputs(layer: Any, prompt: int) -> None:
    """All K columns, zeros before the sequence, as the original's: seen from outside through the convolution itself."""
    raw = []
    handle = layer.conv1d.register_forward_pre_hook(lambda module, arguments: raw.append(arguments[0]))
    layer(inputs()[:, :prompt])
    handle.remove()
    params = compat.InferenceParams(17, 2)
    layer(inputs()[:, :prompt], inference_params=params)
    conv_state, ssm_state = params.key_value_memory_dict[0]
    padded = torch.nn.functional.pad(raw[0].transpose(1, 2), (4, 0))
    close(conv_state, padded[..., -4:])
    close(ssm_state, layer.scan(inputs()[:, :prompt])[1].ssm)


@torch.no_grad()
def test_step(layer: Any) -> None:
    x = inputs()
    conv_state, ssm_state = layer.allocate_inference_cache(2, 17)
    channels = layer.conv1d.weight.shape[0]
    assert conv_state.shape == (2, channels, 4)
    assert ssm_state.shape == ((2, 24, 5) if ssm_state.ndim == 3 else (2, 6, 4, 6))
    assert layer.allocate_inference_cache(2, 17, dtype=torch.float64)[0].dtype == torch.float64
    expected = layer(x)
    for t in range(17):
        y, conv_after, ssm_after = layer.step(x[:, t : t + 1], conv_state, ssm_state)
        assert conv_after is conv_state
        assert ssm_after is ssm_state
        close(y, expected[:, t : t + 1])
    with pytest.raises(ValueError, match="step takes one token"):
        layer.step(x, conv_state, ssm_state)


@torch.no_grad()
@pytest.mark.parametrize("name", ["Mamba", "Mamba2"])
@pytest.mark.parametrize("taps", [1, 2])
def test_few_taps(name: str, taps: int) -> None:
    layer = make(name, d_conv=taps)
    x = inputs(5)
    cache = layer.allocate_inference_cache(2, 5)
    close(torch.cat([layer.step(x[:, t : t + 1], *cache)[0] for t in range(5)], dim=1), layer(x))


def test_caches_that_do_not_fit(layer: Any) -> None:
    params = compat.InferenceParams(17, 2)
    layer(inputs(), inference_params=params)
    params.seqlen_offset = 17
    with pytest.raises(ValueError, match="the cache of layer 0 has 2 rows, the input 3"):
        layer(inputs(1, rows=3), inference_params=params)
    with pytest.raises(ValueError, match="construct it with layer_idx"):
        make(type(layer).__name__, layer_idx=None)(inputs(), inference_params=compat.InferenceParams(17, 2))


# -- Mamba-2's packed rows --------------------------------------------------------------------------------------------------


def documents() -> tuple[Tensor, Tensor, Tensor]:
    """One row, the number of each position's document, and the borders."""
    x = inputs(sum(LENGTHS), rows=1)
    numbers = torch.arange(len(LENGTHS)).repeat_interleave(torch.tensor(LENGTHS))[None]
    return x, numbers.int(), torch.tensor([0, *LENGTHS]).cumsum(0).int()


def test_documents_by_number_and_by_border() -> None:
    layer = make("Mamba2")
    x, numbers, borders = documents()
    expected = torch.cat([layer(piece) for piece in x.split(LENGTHS, dim=1)], dim=1)
    close(layer(x, seq_idx=numbers), expected)
    close(layer(x, cu_seqlens=borders), expected)
    close(layer(x, seq_idx=numbers, cu_seqlens=borders), expected)
    padded = torch.cat([x, torch.full_like(x[:, :3], float("nan"))], dim=1)
    y = layer(padded, seq_idx=torch.cat([numbers, torch.full((1, 3), -1).int()], dim=1))
    close(y[:, :-3], expected)
    assert not y[:, -3:].any()


def test_a_flat_batch() -> None:
    layer = make("Mamba2")
    x = inputs()
    close(layer(x.flatten(0, 1), seqlen=17), layer(x).flatten(0, 1))


@torch.no_grad()
def test_documents_fill_one_cache_row_each() -> None:
    layer = make("Mamba2")
    x, _, borders = documents()
    params = compat.InferenceParams(32, len(LENGTHS))
    close(layer(x, cu_seqlens=borders, inference_params=params), layer(x, cu_seqlens=borders))
    params.seqlen_offset = 1
    following = inputs(1, rows=len(LENGTHS))
    y = layer(following, inference_params=params)
    for i, piece in enumerate(x.split(LENGTHS, dim=1)):
        close(y[i : i + 1], layer(torch.cat([piece, following[i : i + 1]], dim=1))[:, -1:])


def test_what_mamba2_refuses() -> None:
    with pytest.raises(ValueError, match="process_group must be None"):
        make("Mamba2", process_group=object())
    x, numbers, borders = documents()
    with pytest.raises(ValueError, match="a row of documents has no one state"):
        make("Mamba2")(x, seq_idx=numbers, inference_params=compat.InferenceParams(32, 4))
    with pytest.raises(ValueError, match="a batch of one row"):
        make("Mamba2")(torch.cat([x, x]), cu_seqlens=borders, inference_params=compat.InferenceParams(32, 4))
