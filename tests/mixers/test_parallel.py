"""Mixers side by side: the weighted sum, the bus between them, and what must be said of mistakes."""

from __future__ import annotations

import pytest
import torch

from statescan import Spec
from statescan.mixers import GatedShortConv, Parallel, ParallelState, RWKV7TimeMix

CONVS = {"first": Spec(GatedShortConv), "second": Spec(GatedShortConv, d_conv=4)}


def test_it_is_a_weighted_sum_and_its_state_that_of_its_parts() -> None:
    layer = Parallel(8, CONVS, inputs={"second": 0.5}, outputs={"first": 3.0}).double()
    x = torch.randn(2, 7, 8, dtype=torch.float64)
    y, state = layer.scan(x)
    first, last_first = layer.first.scan(x)
    second, last_second = layer.second.scan(0.5 * x)
    torch.testing.assert_close(y, 3 * first + second)
    assert isinstance(state, ParallelState)
    torch.testing.assert_close(state.parts, (last_first, last_second))
    assert layer.residual_outputs == ("first.out_proj", "second.out_proj")
    assert next(name for name, _ in layer.named_parameters()).startswith("first.")


def test_what_one_part_leaves_on_the_bus_another_reads() -> None:
    sizes = {"head_dim": 4, "rank_w": 2, "rank_a": 2, "rank_v": 2, "rank_g": 2}
    one, other = Spec(RWKV7TimeMix, **sizes), Spec(RWKV7TimeMix, first=False, **sizes)
    layer = Parallel(8, {"one": one, "other": other})
    assert (layer.reads, layer.writes) == ((), ("v_first",))
    assert Parallel(8, {"other": other}).reads == ("v_first",)
    layer(torch.randn(1, 3, 8), bus={})


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="parts is empty"):
        Parallel(8, {})
    with pytest.raises(ValueError, match=r"outputs names \['third'\]"):
        Parallel(8, CONVS, outputs={"third": 2.0})
    with pytest.raises(ValueError, match="must be a causal mixer; got Linear"):
        Parallel(8, {"linear": lambda width: torch.nn.Linear(width, width)})  # type: ignore[dict-item,return-value]
