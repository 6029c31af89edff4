"""Mamba with heads: one head is Mamba, and several know nothing of each other before the output."""

from __future__ import annotations

import pytest
import torch

from statescan.mixers import Mamba, MultiheadMamba
from statescan.testing.run import stir


def test_one_head_is_mamba() -> None:
    ours = stir(MultiheadMamba(12, 1, d_state=5, dt_rank=3, bias=True)).double()
    plain = Mamba(12, d_state=5, dt_rank=3, bias=True).double()
    squeezed = {n: t.squeeze(0) if n.startswith(("x_proj", "dt_proj")) else t for n, t in ours.state_dict().items()}
    plain.load_state_dict(squeezed)
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    torch.testing.assert_close(ours(x), plain(x), atol=1e-12, rtol=0)


def test_heads_see_only_their_own_channels() -> None:
    mixer = stir(MultiheadMamba(8, 2, d_state=3)).double()
    x = torch.randn(1, 6, 8, dtype=torch.float64)
    (v, steps, B, C, _), _ = mixer.streams(x)
    mixer.conv1d.weight.data[:8] *= -3.0  # the first head's
    (other, later, D, E, _), _ = mixer.streams(x)
    assert v.shape == (1, 6, 16)
    channels = [(one.unflatten(2, (2, -1)), two.unflatten(2, (2, -1))) for one, two in ((v, other), (steps.delta, later.delta))]
    for before, after in (*channels, (B, D), (C, E)):
        assert torch.equal(before[:, :, 1], after[:, :, 1])
        assert not torch.equal(before[:, :, 0], after[:, :, 0])


def test_initial_steps_are_those_of_mamba() -> None:
    mixer = MultiheadMamba(16, 4, dt_min=0.01, dt_max=0.02)
    steps = torch.nn.functional.softplus(mixer.dt_proj.bias)
    assert steps.shape == (4, 8)
    assert bool(((steps > 0.0099) & (steps < 0.0201)).all())


def test_heads_must_divide_the_inner_width() -> None:
    with pytest.raises(ValueError, match=r"must divide the inner width, 16; got 3"):
        MultiheadMamba(8, 3)
