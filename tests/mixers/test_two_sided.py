"""A convolution that looks both ways."""

from __future__ import annotations

import pytest
import torch

from statescan import Spec, Timeline
from statescan.mixers.companion import Companion
from statescan.mixers.lssl import LSSL
from statescan.mixers.lti import LTIMixer
from statescan.mixers.mamba import Mamba
from statescan.mixers.s4 import S4
from statescan.mixers.s4d import S4D
from statescan.mixers.two_sided import TwoSided


def test_the_backward_kernel_starts_at_the_next_position() -> None:
    torch.manual_seed(0)
    layer = TwoSided(3, Spec(S4D, d_state=8, activation="none", final_act="none")).double()
    with torch.no_grad():
        layer.ahead.out_proj.weight.copy_(torch.eye(3))
        layer.ahead.out_proj.bias.zero_()
        impulse = torch.zeros(1, 9, 3, dtype=torch.float64)
        impulse[:, 4] = 1
        y = layer(impulse)[0]
        ahead, back = layer.ahead.kernel(5).T, layer.ahead.kernel(4, readout=layer.readout_back).T
        ahead[0] += layer.ahead.D
        assert (y[4:] - ahead).abs().max() < 1e-12
        assert (y[:4] - back.flip(0)).abs().max() < 1e-12


@pytest.mark.parametrize("mixer", [Spec(S4D, d_state=4), Spec(S4, d_state=4), Spec(LSSL, d_state=4), Spec(Companion, d_state=4)])
def test_the_second_readout_is_used(mixer: Spec[LTIMixer]) -> None:
    torch.manual_seed(0)
    layer, x = TwoSided(4, mixer), torch.randn(2, 5, 4)
    before = layer(x)
    (gradient,) = torch.autograd.grad(before.pow(2).sum(), layer.readout_back)
    assert (gradient.flatten(1).abs().amax(1) > 0).all()
    with torch.no_grad():
        layer.readout_back.neg_()
        after = layer(x)
    assert (after - before).abs()[:, :-1].amax() > 1e-3
    torch.testing.assert_close(after[:, -1], before[:, -1])


def test_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="use Bidirectional"):
        TwoSided(4, Spec(Mamba))
    with pytest.raises(ValueError, match="no notion of elapsed time"):
        TwoSided(4, Spec(S4D, d_state=4))(torch.zeros(1, 3, 4), Timeline(interval=torch.ones(1, 3)))
