"""Sequences as maps."""

from __future__ import annotations

import pytest
import torch

from statescan import S4D, SS2D, Grid, Spec, Timeline


def test_it_is_the_mixer_on_the_map_and_a_map_a_document() -> None:
    torch.manual_seed(0)
    layer, x = Grid(6, Spec(SS2D, d_state=2), width=4), torch.randn(2, 12, 6)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), layer.mixer(x.view(2, 3, 4, 6)).view(2, 12, 6))
        short = torch.cat([x[:, :10], torch.zeros(2, 2, 6)], 1)  # zeros fill the last row
        torch.testing.assert_close(layer(x[:, :10]), layer(short)[:, :10])
        packed = layer(x, Timeline.packed([[5, 7], [5, 7]]))
        torch.testing.assert_close(packed, torch.cat([layer(x[:, :5]), layer(x[:, 5:])], 1))


def test_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="S4D is none"):
        Grid(6, Spec(S4D), width=4)
    with pytest.raises(ValueError, match="width must be"):
        Grid(6, width=0)
