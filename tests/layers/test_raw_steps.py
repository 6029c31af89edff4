"""The step's projection: its factors go to the scan where nothing could tell, its output where something watches or replaces the call."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrize

from statescan.layers import DeltaProjection
from statescan.layers.delta import raw_steps
from statescan.mixers import Mamba


class Doubled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 50 * weight


class Other(DeltaProjection):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) + 5


def replace_forward(mixer: Mamba) -> None:
    mixer.dt_proj.forward = lambda r, old=mixer.dt_proj.forward: old(r) + 5  # type: ignore[method-assign, assignment, misc]


def replace(mixer: Mamba) -> None:
    other = Other(mixer.dt_rank, mixer.d_inner)
    other.load_state_dict(mixer.dt_proj.state_dict())
    mixer.dt_proj = other


CHANGES: dict[str, Callable[[Mamba], object]] = {
    "hook": lambda mixer: mixer.dt_proj.register_forward_hook(lambda module, inputs, output: output + 5),
    "hook before": lambda mixer: mixer.dt_proj.register_forward_pre_hook(lambda module, inputs: (50 * inputs[0],)),
    "forward": replace_forward,
    "parametrised": lambda mixer: parametrize.register_parametrization(mixer.dt_proj, "weight", Doubled()),
    "another class": replace,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("grad", [False, True])
def test_whatever_watches_the_projection_acts(change: str, grad: bool) -> None:
    torch.manual_seed(0)
    mixer, u = Mamba(16), torch.randn(2, 30, 16)
    with torch.set_grad_enabled(grad):
        before = mixer(u)
        CHANGES[change](mixer)
        (x, steps, *_), _ = mixer.streams(u)
        after = mixer(u)
    assert steps.delta.shape == x.shape
    assert (after - before).abs().max() > 1e-3


def test_hooks_of_every_module_see_it() -> None:
    mixer, seen = Mamba(16), []
    handle = register_module_forward_hook(lambda module, inputs, output: seen.append(module))
    try:
        with torch.no_grad():
            mixer(torch.randn(2, 30, 16))
    finally:
        handle.remove()
    assert any(module is mixer.dt_proj for module in seen)


def test_factors_and_output_are_the_same_steps() -> None:
    torch.manual_seed(0)
    projection, r = DeltaProjection(5, 9).double(), torch.randn(2, 7, 5, dtype=torch.float64)
    steps = raw_steps(projection, r)
    assert steps.weight is projection.weight
    assert steps.bias is projection.bias
    torch.testing.assert_close(steps.delta @ steps.weight.T + steps.bias, projection(r))


def test_watching_changes_no_bit_in_bfloat16() -> None:
    torch.manual_seed(0)
    mixer, u = Mamba(32).bfloat16(), torch.randn(2, 30, 32).bfloat16()
    with torch.no_grad():
        expected = mixer(u)
        mixer.dt_proj.register_forward_hook(lambda *_: None)
        assert torch.equal(mixer(u), expected)


def test_the_module_multiplies_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert raw_steps(DeltaProjection(5, 9), torch.randn(2, 7, 5)).weight is None
