"""SS2D: its formula, its symmetries, and what timelines and routes mean to it."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import statescan
from statescan import Timeline
from statescan.layers.grouped import GroupedLinear
from statescan.mixers.ss2d import CROSS, SS2D
from statescan.routes import parse_route

SIZES = [(4, 4), (3, 5), (1, 6), (5, 1), (1, 1)]


def make(seed: int = 0, double: bool = True, **arguments: object) -> SS2D:
    """A small layer whose dynamics are away from their start, so that routes and states differ visibly."""
    torch.manual_seed(seed)
    layer = SS2D(**{"d_model": 6, "d_state": 3, "dt_min": 0.1, "dt_max": 1.0, **arguments}).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        layer.A_logs += 0.3 * torch.randn_like(layer.A_logs)
        layer.Ds += 0.3 * torch.randn_like(layer.Ds)
        for norm in (m for m in layer.modules() if isinstance(m, nn.LayerNorm)):
            norm.weight += 0.3 * torch.randn_like(norm.weight)
            norm.bias += 0.3 * torch.randn_like(norm.bias)
    return layer.double() if double else layer


def maps(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tie(layer: SS2D) -> SS2D:
    """Every route with the parameters of the first."""
    k = len(layer.routes)
    with torch.no_grad():
        for parameter in (layer.x_proj.weight, layer.dt_projs.weight, layer.dt_projs.bias):
            parameter.copy_(parameter[:1].expand_as(parameter))
        for parameter in (layer.A_logs, layer.Ds):
            parameter.copy_(parameter.unflatten(0, (k, -1))[0].repeat(k, *[1] * (parameter.ndim - 1)))
    return layer


def by_definition(layer: SS2D, u: Tensor) -> Tensor:
    """The formula of the docstring, one route, one cell at a time."""
    (_, height, width, _), e, n, r = u.shape, layer.d_inner, layer.d_state, layer.dt_rank
    x, z = layer.in_proj(u), None
    if layer.gate:
        x, z = x[..., :e], x[..., e:]
    if isinstance(layer.conv2d, nn.Conv2d):
        padding = layer.conv2d.weight.shape[-1] // 2
        x = F.conv2d(x.permute(0, 3, 1, 2), layer.conv2d.weight, layer.conv2d.bias, padding=padding, groups=e).permute(0, 2, 3, 1)
    x = x * torch.sigmoid(x)
    total = torch.zeros_like(x)
    for k, route in enumerate(layer.routes):
        A = -layer.A_logs[k * e : (k + 1) * e].exp()
        h = torch.zeros(u.shape[0], e, n, dtype=u.dtype)
        for cell in route.order((height, width)).tolist():
            i, j = divmod(cell, width)
            xt = x[:, i, j]
            low, B, C = (xt @ layer.x_proj.weight[k].T).split([r, n, n], dim=-1)
            delta = F.softplus(low @ layer.dt_projs.weight[k].T + layer.dt_projs.bias[k])
            h = torch.exp(delta.unsqueeze(-1) * A) * h + (delta * xt).unsqueeze(-1) * B.unsqueeze(1)
            total[:, i, j] += (h * C.unsqueeze(1)).sum(-1) + layer.Ds[k * e : (k + 1) * e] * xt
    y = F.layer_norm(total, (e,), layer.out_norm.weight, layer.out_norm.bias)
    return layer.out_proj(y if z is None else y * z * torch.sigmoid(z))


VARIANTS = [
    {},
    {"gate": False, "conv_bias": False, "d_state": 1, "ssm_ratio": 1.0},
    {"d_conv": 1, "bias": True},
    {"dt_rank": 3, "d_conv": 5},
    {"routes": ("snake", "reverse(transpose(snake))", "mirror(col)")},
]


@pytest.mark.parametrize("implementation", ["reference", "portable"])
@pytest.mark.parametrize("arguments", VARIANTS, ids=lambda a: ",".join(a) or "default")
def test_equals_its_formula_in_values_and_gradients(arguments: dict[str, object], implementation: str) -> None:
    layer = make(**arguments)
    for space in SIZES if not arguments else [(3, 4)]:
        x = maps(2, *space, 6).requires_grad_()
        with statescan.implementation(implementation):
            y = layer(x)
        expected = by_definition(layer, x)
        assert torch.allclose(y, expected, rtol=0, atol=1e-10), space
        leaves = {"x": x, **dict(layer.named_parameters())}
        weight = maps(*y.shape, seed=2)
        ours, theirs = (torch.autograd.grad((out * weight).sum(), list(leaves.values())) for out in (y, expected))
        for name, a, b in zip(leaves, ours, theirs, strict=True):
            assert torch.allclose(a, b, rtol=1e-9, atol=1e-9), (name, space)


def test_float32_is_close_to_float64() -> None:
    layer, x = make(d_model=16, d_state=8), maps(2, 9, 7, 16)
    expected = layer(x)
    assert (layer.float()(x.float()) - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        ({"d_model": 96}, 105_216),
        ({"d_model": 96, "ssm_ratio": 1.0, "d_state": 1, "gate": False, "conv_bias": False}, 26_016),
    ],
)
def test_parameter_counts_of_the_card(arguments: dict[str, object], count: int) -> None:
    with torch.device("meta"):
        layer = SS2D(**arguments)  # type: ignore[arg-type]
    assert sum(p.numel() for p in layer.parameters()) == count


def test_shapes_of_the_parameters_are_those_of_the_checkpoints() -> None:
    shapes = {name: tuple(p.shape) for name, p in SS2D(32, d_state=5, ssm_ratio=1.5).named_parameters()}
    assert shapes == {
        "A_logs": (4 * 48, 5), "Ds": (4 * 48,), "in_proj.weight": (96, 32), "conv2d.weight": (48, 1, 3, 3), "conv2d.bias": (48,),
        "x_proj.weight": (4, 12, 48), "dt_projs.weight": (4, 48, 2), "dt_projs.bias": (4, 48),
        "out_norm.weight": (48,), "out_norm.bias": (48,), "out_proj.weight": (32, 48),
    }  # fmt: skip


def test_initial_dynamics() -> None:
    torch.manual_seed(0)
    layer = SS2D(64, d_state=4)
    assert torch.allclose(layer.A_logs.exp(), torch.arange(1.0, 5.0).expand(4 * 128, 4))
    assert torch.equal(layer.Ds, torch.ones(4 * 128))
    steps = F.softplus(layer.dt_projs.bias)
    assert 0.001 <= steps.min() < 0.0015
    assert 0.06 < steps.max() <= 0.1
    assert 0.95 * 4**-0.5 < layer.dt_projs.weight.abs().max() <= 4**-0.5


# -- symmetries of the scan core (the convolution has its own) ----------------------------------------------------------------------


@pytest.mark.parametrize("space", [(4, 4), (3, 5)])
def test_tied_routes_commute_with_transposition_and_half_turns_but_not_with_a_flip(space: tuple[int, int]) -> None:
    layer = tie(make())
    u = maps(2, *space, layer.d_inner)
    y = layer.core(u)
    assert torch.allclose(layer.core(u.transpose(1, 2)), y.transpose(1, 2), rtol=0, atol=1e-12)
    assert torch.allclose(layer.core(u.flip(1, 2)), y.flip(1, 2), rtol=0, atol=1e-12)
    assert (layer.core(u.flip(2)) - y.flip(2)).abs().max() > 0.01 * y.abs().max()
    untied = make()
    assert (untied.core(u.transpose(1, 2)) - untied.core(u).transpose(1, 2)).abs().max() > 0.01 * y.abs().max()


def reach(layer: SS2D, space: tuple[int, int], i: int, j: int) -> Tensor:
    """Which cells of the core change when one cell does."""
    u = maps(1, *space, layer.d_inner)
    touched = u.clone()
    touched[:, i, j] += 1
    return (layer.core(touched) != layer.core(u)).any(-1).squeeze(0)


@pytest.mark.parametrize("space", [(4, 4), (3, 5)])
def test_an_impulse_at_any_corner_reaches_every_pixel(space: tuple[int, int]) -> None:
    for i in (0, space[0] - 1):
        for j in (0, space[1] - 1):
            assert reach(make(), space, i, j).all()


def test_the_row_route_alone_leaves_earlier_pixels_unchanged() -> None:
    changed = reach(make(routes=("row",)), (3, 4), 1, 2).flatten()
    assert changed.tolist() == [t >= 1 * 4 + 2 for t in range(12)]
    backwards = reach(make(routes=("reverse(row)",)), (3, 4), 1, 2).flatten()
    assert backwards.tolist() == [t <= 1 * 4 + 2 for t in range(12)]


def test_each_route_has_its_own_parameters() -> None:
    layer, u = make(), maps(1, 3, 4, 12)
    alone = []
    for k, text in enumerate(CROSS):
        one = make(routes=(text,))
        own = slice(k * 12, (k + 1) * 12)
        with torch.no_grad():
            for name in ("x_proj.weight", "dt_projs.weight", "dt_projs.bias"):
                one.get_parameter(name).copy_(layer.get_parameter(name)[k : k + 1])
            one.A_logs.copy_(layer.A_logs[own])
            one.Ds.copy_(layer.Ds[own])
        alone.append(one.core(u))
    assert torch.allclose(sum(alone), layer.core(u), rtol=0, atol=1e-12)


def test_a_route_that_resets_at_line_starts_scans_every_line_by_itself() -> None:
    layer = make(routes=("row(reset=True)", "reverse(row(reset=True))"))
    u = maps(2, 3, 5, layer.d_inner)
    apart = torch.cat([layer.core(u[:, i : i + 1]) for i in range(3)], 1)
    assert torch.allclose(layer.core(u), apart, rtol=0, atol=1e-12)
    columns = make(routes=("col(reset=True)", "row"))
    assert not reach(columns, (3, 4), 2, 3)[:, :3].any()
    assert reach(columns, (3, 4), 0, 1)[1:, 1].all()


# -- timelines --------------------------------------------------------------------------------------------------------------------------


def test_packed_maps_above_one_another_are_mixed_as_if_alone() -> None:
    layer, x = make(), maps(2, 7, 3, 6)
    y = layer(x, Timeline.packed([[2, 5], [4, 3]]))
    for row, cut in ((0, 2), (1, 4)):
        assert torch.allclose(y[row, :cut], layer(x[row : row + 1, :cut])[0], rtol=0, atol=1e-12)
        assert torch.allclose(y[row, cut:], layer(x[row : row + 1, cut:])[0], rtol=0, atol=1e-12)


def test_masked_rows_do_not_exist() -> None:
    layer, x = make(), maps(2, 5, 3, 6)
    mask = torch.tensor([[True, False, True, True, False], [False, True, True, True, True]])
    x[~mask] = math.nan
    x.requires_grad_()
    y = layer(x, Timeline.padded(mask))
    for row in range(2):
        assert torch.allclose(y[row, mask[row]], layer(x[row : row + 1, mask[row]])[0], rtol=0, atol=1e-12)
        assert torch.equal(y[row, ~mask[row]], torch.zeros_like(y[row, ~mask[row]]))
    gradient = torch.autograd.grad(y.sum(), x)[0]
    assert gradient.isfinite().all()
    assert torch.equal(gradient[~mask], torch.zeros_like(gradient[~mask]))
    assert torch.equal(layer(x.nan_to_num(), Timeline()), layer(x.nan_to_num()))


def test_time_does_not_pass_in_an_image() -> None:
    layer, x = make(), maps(1, 3, 3, 6)
    assert torch.equal(layer(x, Timeline(interval=1.0)), layer(x))
    with pytest.raises(ValueError, match="no notion of elapsed time"):
        layer(x, Timeline(interval=torch.ones(1, 3)))


# -- the house's laws -----------------------------------------------------------------------------------------------------------------


def test_projections_are_called_as_modules() -> None:
    layer, x, seen = make(), maps(1, 3, 4, 6), []
    for name, child in layer.named_modules():
        if isinstance(child, (nn.Linear, nn.Conv2d, nn.LayerNorm, GroupedLinear)):
            child.register_forward_hook(lambda *_, name=name: seen.append(name))
    before = layer(x)
    assert sorted(seen) == sorted(["in_proj", "conv2d", "x_proj", "dt_projs", "out_norm", "out_proj"])
    for name in ("in_proj", "conv2d", "x_proj", "dt_projs", "out_norm", "out_proj"):
        handle = layer.get_submodule(name).register_forward_hook(lambda *args: args[-1] * 1.5 + 0.1)
        assert not torch.allclose(layer(x), before), name
        handle.remove()


def test_dynamics_stay_in_float32() -> None:
    layer = make(double=False)
    kept = {name: p.clone() for name, p in layer.named_parameters()}
    layer.to(torch.bfloat16)
    for name, parameter in layer.named_parameters():
        if name in ("A_logs", "Ds", "dt_projs.bias"):
            assert parameter.dtype == torch.float32
            assert torch.equal(parameter, kept[name])
        else:
            assert parameter.dtype == torch.bfloat16
    y = layer(maps(1, 4, 5, 6).bfloat16())
    assert y.dtype == torch.bfloat16
    expected = make()(maps(1, 4, 5, 6))
    assert (y.double() - expected).abs().max() < 0.05 * expected.abs().max()
    decayed = statescan.parameter_groups(layer)[0]["params"]
    assert not {id(layer.A_logs), id(layer.Ds), id(layer.dt_projs.bias)} & {id(p) for p in decayed}


def test_autocast_keeps_the_step_in_float32() -> None:
    layer, x = make(double=False), maps(1, 4, 5, 6)
    dtypes = []
    layer.dt_projs.register_forward_hook(lambda *args: dtypes.append(args[-1].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x.float())
    assert dtypes == [torch.float32]
    expected = make()(x)
    assert (y.double() - expected).abs().max() < 0.05 * expected.abs().max()


def test_grouped_linear_is_so_many_linears() -> None:
    torch.manual_seed(0)
    layer = GroupedLinear(3, 4, 5)
    nn.init.normal_(layer.bias)  # type: ignore[arg-type]
    x = torch.randn(2, 7, 3, 4)
    assert layer.bias is not None
    expected = torch.stack([F.linear(x[:, :, k], layer.weight[k], layer.bias[k]) for k in range(3)], 2)
    assert torch.allclose(layer(x), expected)
    shared = layer(x[:, :, :1])
    assert torch.allclose(shared, layer(x[:, :, :1].expand(-1, -1, 3, -1)), atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"d_model": 0}, "positive"),
        ({"d_model": 8, "d_conv": 4}, "odd"),
        ({"d_model": 8, "routes": ()}, "routes"),
        ({"d_model": 8, "routes": ("row", "colum")}, "did you mean 'col'"),
        ({"d_model": 8, "dt_min": 0.5}, "dt_min"),
    ],
)
def test_wrong_arguments_are_clear_errors(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SS2D(**arguments)  # type: ignore[arg-type]


def test_wrong_inputs_are_clear_errors() -> None:
    layer = make()
    with pytest.raises(ValueError, match="channels last"):
        layer(maps(2, 6, 4, 4))
    with pytest.raises(ValueError, match="channels last"):
        layer(maps(2, 9, 6))
    with pytest.raises(ValueError, match=r"timeline.mask has shape \(2, 9\)"):
        layer(maps(2, 3, 3, 6), Timeline.padded(torch.ones(2, 9)))
    with pytest.raises(ValueError, match="every cell"):
        make(routes=("atrous",))(maps(1, 4, 4, 6))


def test_a_spec_round_trips() -> None:
    spec = statescan.Spec.of(SS2D(16, routes=("snake", "reverse(snake)")))
    assert statescan.Spec.from_dict(spec.to_dict()) == spec
    assert spec().routes == (parse_route("snake"), parse_route("reverse(snake)"))


@pytest.mark.full
def test_compiles_with_one_graph_for_every_size() -> None:
    layer = make(double=False)
    with statescan.implementation("portable"):
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
        for space in ((4, 5), (6, 3)):
            x = maps(2, *space, 6).float()
            assert torch.allclose(compiled(x), layer(x), rtol=1e-5, atol=1e-6)
