"""Bidirectional: both directions reach everywhere, and no further than their own document."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from statescan import Spec, Timeline
from statescan.mixers import Mamba, Mamba2
from statescan.mixers.bidirectional import Bidirectional
from statescan.mixers.s4d import S4D

MIXERS: dict[str, Spec] = {
    "S4D": Spec(S4D, d_state=4),
    "Mamba": Spec(Mamba, d_state=4),
    "Mamba2": Spec(Mamba2, d_state=4, headdim=4, chunk_size=8),
}
MERGES = ["add", "mean", "concat", "gate"]


def build(mixer: Callable[..., object], *args: object, **kwargs: object) -> Bidirectional:
    torch.manual_seed(0)
    layer = Bidirectional(8, mixer, *args, **kwargs).double().eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return layer


def data(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("merge", MERGES)
def test_packed_with_holes_and_uneven_time_equals_documents_apart(name: str, merge: str) -> None:
    layer = build(MIXERS[name], merge)
    g = torch.Generator().manual_seed(2)
    x = data(2, 17, 8)
    reset = Timeline.packed([[5, 1, 11], [9, 8]]).reset
    mask = torch.rand(2, 17, generator=g) < 0.7
    interval = torch.rand(2, 17, generator=g, dtype=torch.float64) + 0.3
    for line in (Timeline(reset), Timeline(reset, mask), Timeline(reset, mask, interval), Timeline(mask=mask), Timeline(interval=interval)):
        clean = x if line.mask is None else torch.where(line.mask.unsqueeze(-1), x, float("nan"))
        if line.mask is not None and isinstance(line.interval, torch.Tensor):
            line = line._replace(interval=torch.where(line.mask, line.interval, float("nan")))
        together = layer(clean, line)
        assert (together - line.apart(layer, x)).abs().max() < 1e-10


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_deletion(side: str) -> None:
    layer = build(MIXERS["Mamba"], "concat")
    x = data(1, 9, 8)
    padding = torch.full((1, 4, 8), float("nan"), dtype=torch.float64)
    exists = torch.tensor([[False] * 4 + [True] * 9])
    padded = torch.cat([padding, x], 1)
    if side == "right":
        padded, exists = torch.cat([x, padding], 1), exists.flip(1)
    y = layer(padded, Timeline.padded(exists))
    assert (y[exists] - layer(x)[0]).abs().max() < 1e-12
    assert (y[~exists] == 0).all()


@pytest.mark.parametrize("name", MIXERS)
def test_an_impulse_reaches_both_sides_of_its_document_only(name: str) -> None:
    layer = build(MIXERS[name])
    x = data(1, 15, 8)
    changed = x.clone()
    changed[:, 7] += 1
    line = Timeline.packed([4, 7, 4])
    moved = (layer(x, line) - layer(changed, line)).abs().amax(-1)[0]
    assert (moved[4:11] > 1e-9).all()
    assert (moved[:4] < 1e-12).all()
    assert (moved[11:] < 1e-12).all()


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("merge", ["add", "mean"])
def test_tied_weights_commute_with_reversal_exactly(name: str, merge: str) -> None:
    layer = build(MIXERS[name], merge, tied=True)
    x = data(2, 11, 8)
    assert torch.equal(layer(x.flip(1)), layer(x).flip(1))
    line = Timeline.packed([[4, 7], [11]])
    assert torch.equal(layer(x.flip(1), line.reversed()), layer(x, line).flip(1))
    free = build(MIXERS[name], merge)
    assert sum(p.numel() for p in layer.parameters()) * 2 == sum(p.numel() for p in free.parameters())
    assert not torch.allclose(free(x.flip(1)), free(x).flip(1))


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("tied", [False, True])
def test_every_parameter_of_both_directions_learns(merge: str, tied: bool) -> None:
    layer = build(MIXERS["Mamba"], merge, tied)
    layer(data(2, 9, 8), Timeline.packed([[4, 5], [9]])).square().sum().backward()
    for name, p in layer.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().max() > 0, name


def test_merges_are_their_formulas() -> None:
    x = data(2, 7, 8)
    for merge in MERGES:
        layer = build(MIXERS["Mamba"], merge)
        assert layer.behind is not None
        f, b = layer.ahead(x), layer.behind(x.flip(1)).flip(1)
        if merge == "gate":
            g = torch.sigmoid(layer.gate_proj(x))
            expected = g * f + (1 - g) * b
        elif merge == "concat":
            expected = layer.out_proj(torch.cat([f, b], -1))
        else:
            expected = (f + b) / (2 if merge == "mean" else 1)
        assert (layer(x) - expected).abs().max() < 1e-12


def test_capabilities_are_those_of_the_mixer_inside_and_mistakes_are_named() -> None:
    assert build(MIXERS["Mamba"]).has_time
    assert not hasattr(build(MIXERS["S4D"]), "step")
    with pytest.raises(ValueError, match="looks both ways already"):
        Bidirectional(8, Spec(Bidirectional, mixer=MIXERS["Mamba"]))
    with pytest.raises(ValueError, match="merge must be"):
        Bidirectional(8, MIXERS["Mamba"], "sum")  # type: ignore[arg-type]
    spec = Spec(Bidirectional, mixer={"name": "Mamba", "d_state": 4}, merge="gate")
    assert Spec.from_dict(spec.to_dict()) == spec
    assert isinstance(spec(8).ahead, Mamba)
