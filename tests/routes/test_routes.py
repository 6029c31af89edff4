"""The laws of routes, over every route, on grids of odd, even, square, oblong and degenerate shapes."""

from __future__ import annotations

import math

import pytest
import torch

from statescan import routes
from statescan.protocols import Route
from statescan.routes import parse_route
from statescan.routes._template import Template
from statescan.routes.base import inverse_of, tables
from statescan.routes.grid import cells

FULL = [
    "row", "col", "snake", "snake(axis=0)", "reverse(row)", "reverse(col)", "reverse(snake)", "transpose(snake)",
    "mirror(snake, axis=0)", "mirror(col)", "reverse(transpose(mirror(row)))", "row(reset=True)",
]  # fmt: skip
GRIDS = [(4, 4), (2, 3), (3, 2), (1, 5), (5, 1), (1, 1), (3, 3), (4, 6), (5, 7)]
CROSS = [parse_route(text) for text in ("row", "col", "reverse(row)", "reverse(col)")]


@pytest.mark.parametrize("space", [*GRIDS, (7,), (2, 3, 4), (3, 3, 3)])
@pytest.mark.parametrize("text", FULL)
def test_a_route_is_a_bijection_and_its_inverse_undoes_it(text: str, space: tuple[int, ...]) -> None:
    if text == "mirror(snake, axis=0)" and len(space) == 1:
        space = (8,)
    route = parse_route(text)
    assert isinstance(route, Route)
    order, inverse = route.order(space), route.inverse(space)
    assert order.dtype == inverse.dtype == torch.int64
    assert order.sort().values.tolist() == list(range(math.prod(space)))
    assert torch.equal(inverse[order], torch.arange(math.prod(space)))
    assert torch.equal(order[inverse], torch.arange(math.prod(space)))
    assert torch.equal(parse_route(f"reverse(reverse({text}))").order(space), order)
    assert torch.equal(parse_route(f"transpose(transpose({text}))").order(space), order)


TABLES = {
    # 4 x 4, from the catalogue
    ("snake", (4, 4)): [0, 1, 2, 3, 7, 6, 5, 4, 8, 9, 10, 11, 15, 14, 13, 12],
    ("snake(axis=0)", (4, 4)): [0, 4, 8, 12, 13, 9, 5, 1, 2, 6, 10, 14, 15, 11, 7, 3],
    ("row", (4, 4)): list(range(16)),
    ("col", (4, 4)): [0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15],
    ("reverse(row)", (4, 4)): list(range(15, -1, -1)),
    # 2 x 3: height and width differ
    ("snake", (2, 3)): [0, 1, 2, 5, 4, 3],
    ("snake(axis=0)", (2, 3)): [0, 3, 4, 1, 2, 5],
    ("col", (2, 3)): [0, 3, 1, 4, 2, 5],
    ("reverse(col)", (2, 3)): [5, 2, 4, 1, 3, 0],
    ("mirror(row)", (2, 3)): [2, 1, 0, 5, 4, 3],
    ("mirror(row, axis=0)", (2, 3)): [3, 4, 5, 0, 1, 2],
    # a single row and a single column
    ("snake", (1, 4)): [0, 1, 2, 3],
    ("snake", (4, 1)): [0, 1, 2, 3],
    ("snake(axis=0)", (1, 4)): [0, 1, 2, 3],
}


@pytest.mark.parametrize(("text", "space"), TABLES)
def test_reference_tables(text: str, space: tuple[int, ...]) -> None:
    assert parse_route(text).order(space).tolist() == TABLES[text, space]


@pytest.mark.parametrize("space", GRIDS)
def test_formulas_of_row_column_and_snake(space: tuple[int, int]) -> None:
    height, width = space
    for t in range(height * width):
        assert parse_route("row").order(space)[t] == t
        assert parse_route("col").order(space)[t] == (t % height) * width + t // height
        i, r = divmod(t, width)
        assert parse_route("snake").order(space)[t] == i * width + (r if i % 2 == 0 else width - 1 - r)


@pytest.mark.parametrize("space", [(4, 4), (5, 3), (2, 3, 4), (3, 2, 2, 3)])
def test_a_snake_only_takes_unit_steps(space: tuple[int, ...]) -> None:
    for text in ("snake", "snake(axis=0)", "reverse(snake)"):
        steps = torch.stack(torch.unravel_index(parse_route(text).order(space), space)).diff(dim=1)
        assert torch.equal(steps.abs().sum(0), torch.ones(steps.shape[1], dtype=torch.long))


@pytest.mark.parametrize("space", GRIDS)
def test_transpose_is_the_rule_on_the_transposed_grid_mapped_back(space: tuple[int, int]) -> None:
    for text in ("row", "snake", "mirror(row)", "reverse(snake)"):
        there = parse_route(text).order(space[::-1])
        i, j = there // space[0], there % space[0]  # on the grid (W, H)
        assert torch.equal(parse_route(f"transpose({text})").order(space), j * space[1] + i)
    assert torch.equal(parse_route("transpose(row)").order(space), parse_route("col").order(space))
    assert torch.equal(parse_route("transpose(snake)").order(space), parse_route("snake(axis=0)").order(space))


@pytest.mark.parametrize("space", [(6, 6), (5, 7), (2, 3)])
@pytest.mark.parametrize("step", [1, 2])
def test_atrous_lattices_are_a_partition(space: tuple[int, int], step: int) -> None:
    lattices = [parse_route(f"atrous({step}, {i}, {j})") for i in range(step) for j in range(step)]
    visited = torch.cat([route.order(space) for route in lattices])
    assert visited.sort().values.tolist() == list(range(math.prod(space)))
    x = torch.randn(2, *space, 3)
    assert torch.equal(sum(routes.scatter(routes.gather(x, r), r, space) for r in lattices), x)
    inverse = lattices[0].inverse(space)
    assert (inverse >= 0).sum() == lattices[0].order(space).numel()


def test_route_starts_of_the_atrous_scan() -> None:
    starts = {"atrous(2, 0, 0)": [0, 2, 4, 12], "transpose(atrous(2, 0, 1))": [6, 18, 30, 8], "atrous(2, 0, 1)": [1, 3, 5, 13],
              "transpose(atrous(2, 1, 1))": [7, 19, 31, 9]}  # fmt: skip
    for text, expected in starts.items():
        assert parse_route(text).order((6, 6))[:4].tolist() == expected


@pytest.mark.parametrize("space", [*GRIDS, (2, 3, 4)])
def test_an_identity_mixer_between_split_and_merge_gives_k_times_the_input(space: tuple[int, ...]) -> None:
    x = torch.randn(2, *space, 3)
    for k in (1, 3, 4):
        assert torch.allclose(routes.merge(routes.split(x, CROSS[:k]), CROSS[:k], space), k * x)
    for route in CROSS:
        assert torch.equal(routes.scatter(routes.gather(x, route), route, space), x)
        assert torch.equal(routes.split(x, [route]).squeeze(2), routes.gather(x, route))


@pytest.mark.parametrize("space", [(2, 3), (5, 4), (3, 3)])
def test_split_merge_and_reorder_equal_indexing_in_values_and_gradients(space: tuple[int, int]) -> None:
    four = [*CROSS[:2], parse_route("snake"), parse_route("reverse(snake(axis=0))")]
    cell = math.prod(space)
    x = torch.randn(2, *space, 3, dtype=torch.float64, requires_grad=True)
    by_index = torch.stack([x.flatten(1, 2)[:, route.order(space)] for route in four], 2)
    y = routes.split(x, four)
    weight = torch.randn_like(y)
    assert torch.equal(y, by_index)
    assert torch.allclose(*(torch.autograd.grad((out * weight).sum(), x)[0] for out in (y, by_index)), rtol=0, atol=1e-14)

    y = torch.randn(2, cell, 4, 3, dtype=torch.float64, requires_grad=True)
    by_index = sum(y[:, route.inverse(space), k] for k, route in enumerate(four)).unflatten(1, space)
    merged = routes.merge(y, four, space)
    weight = torch.randn_like(merged)
    assert torch.allclose(merged, by_index, rtol=0, atol=1e-14)
    assert torch.equal(*(torch.autograd.grad((out * weight).sum(), y)[0] for out in (merged, by_index)))

    own = torch.randn(2, *space, 4, 3, dtype=torch.float64, requires_grad=True)
    by_index = torch.stack([own.flatten(1, 2)[:, route.order(space), k] for k, route in enumerate(four)], 2)
    out = routes.reorder(own, four)
    weight = torch.randn_like(out)
    assert torch.equal(out, by_index)
    assert torch.equal(*(torch.autograd.grad((o * weight).sum(), own)[0] for o in (out, by_index)))


def test_gradients_numerically_and_twice() -> None:
    x = torch.randn(1, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    fn = lambda x: routes.merge(routes.split(x, CROSS) ** 2, CROSS, (2, 3))  # noqa: E731
    assert torch.autograd.gradcheck(fn, x)
    assert torch.autograd.gradgradcheck(fn, x)
    assert torch.autograd.gradcheck(lambda x: routes.scatter(routes.gather(x, CROSS[1]), CROSS[1], (2, 3)), x)


def test_undoing_a_transposed_route_with_the_forward_table_is_wrong_off_the_square() -> None:
    """The bug of several published inverses: it cannot be seen on square grids with row-column pairs."""
    column = parse_route("col")
    for space, same in (((3, 3), True), ((2, 3), False), ((4, 6), False)):
        assert torch.equal(column.order(space), column.inverse(space)) is same
    x = torch.randn(1, 2, 3, 1)
    assert torch.equal(routes.scatter(routes.gather(x, column), column, (2, 3)), x)


def test_the_inverse_is_a_scatter() -> None:
    order = torch.tensor([4, 0, 2])
    assert inverse_of(order, 6).tolist() == [1, -1, 2, -1, 0, -1]


def test_text_and_object_are_one() -> None:
    for text in [*FULL, "atrous(step=3, row=1, col=2)"]:
        route = parse_route(text)
        assert parse_route(str(route)) == route
        assert hash(parse_route(str(route))) == hash(route)
    assert str(parse_route("reverse( snake( axis = 0 ) )")) == "reverse(snake(axis=0))"
    assert parse_route(parse_route("col")) == parse_route("col")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("column", "did you mean 'col'"),
        ("reverse(snak)", "did you mean 'snake'"),
        ("snake(axs=1)", "did you mean 'axis'"),
        ("snake(axis='x')", "snake.axis must be int"),
        ("reverse()", "missing a required argument"),
        ("reverse(1)", "reverse.route must be"),
        ("row + col", "is not a route"),
        ("row(", "is not a route"),
        ("", "is not a route"),
        ("__import__('os')", "there is no route '__import__'"),
    ],
)
def test_wrong_text_is_one_clear_error(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        parse_route(text)


def test_wrong_grids_are_clear_errors() -> None:
    with pytest.raises(ValueError, match="axis 3 of a grid of 2 axes"):
        parse_route("snake(axis=3)").order((2, 2))
    with pytest.raises(ValueError, match="at least one cell"):
        parse_route("row").order((0, 2))
    with pytest.raises(ValueError, match="visits no cell"):
        parse_route("atrous(2, 1, 1)").order((1, 4))
    with pytest.raises(ValueError, match=r"every cell.*atrous"):
        routes.split(torch.randn(1, 4, 4, 2), [parse_route("atrous")])


@pytest.mark.parametrize("space", [(2, 3), (4, 2), (3, 3)])
def test_the_timeline_of_a_route_starts_every_line_anew(space: tuple[int, int]) -> None:
    height, width = space
    assert parse_route("row").timeline(space) is None
    assert parse_route("reverse(snake)").timeline(space) is None
    for text, line in (("row(reset=True)", width), ("col(reset=True)", height), ("transpose(row(reset=True))", height)):
        timeline = parse_route(text).timeline(space)
        assert timeline is not None
        assert timeline.reset is not None
        assert timeline.reset[0].nonzero().flatten().tolist() == list(range(0, height * width, line))
        # Reversed, a line begins where it ended; whether the very first position is marked makes no difference.
        back = parse_route(f"reverse({text})").timeline(space)
        assert back is not None
        assert back.reset is not None
        assert back.reset[0, 1:].nonzero().flatten().add(1).tolist() == list(range(line, height * width, line))


def test_tables_are_made_once_and_serve_backward_passes_whoever_made_them() -> None:
    route = parse_route("mirror(mirror(col))")
    with torch.inference_mode():
        made = route.order((6, 9))
    assert not made.is_inference()
    assert route.order((6, 9)) is made
    assert parse_route("mirror(mirror(col))").order((6, 9)) is made
    assert tables((route,), (6, 9), "meta").gather.device.type == "meta"
    with torch.device("meta"):
        assert parse_route("snake").order((3, 8)).device.type == "cpu"
        assert cells((2, 2)).device.type == "cpu"


def test_modes_that_replace_tensors_neither_fill_the_cache_nor_read_it() -> None:
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    route = parse_route("mirror(mirror(row))")
    with FakeTensorMode():
        assert isinstance(route.order((3, 11)), FakeTensor)
    real = route.order((3, 11))
    assert not isinstance(real, FakeTensor)
    with FakeTensorMode():
        assert isinstance(route.order((3, 11)), FakeTensor)


def test_split_and_merge_compile_with_dynamic_shapes() -> None:
    fn = lambda x: routes.merge(routes.split(x, CROSS).sin(), CROSS, x.shape[1:3])  # noqa: E731
    compiled = torch.compile(fn, backend="aot_eager", fullgraph=True, dynamic=True)
    for space in ((3, 4), (5, 2), (6, 6)):
        x = torch.randn(2, *space, 3, requires_grad=True)
        same = compiled(x)
        assert torch.equal(same, fn(x))
        assert torch.equal(*(torch.autograd.grad(y.sum(), x)[0] for y in (same, fn(x))))


@pytest.mark.parametrize("space", GRIDS)
def test_the_template_is_a_route_once_it_is_named(space: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(routes.routes, Template.name, Template)
    route = parse_route("reverse(reverse(template))")
    order = route.order(space)
    assert torch.equal(route.inverse(space)[order], torch.arange(math.prod(space)))
    i, j = order // space[1], order % space[1]
    assert ((i + j).diff() >= 0).all()
    x = torch.randn(1, *space, 2)
    assert torch.equal(routes.scatter(routes.gather(x, route), route, space), x)


def test_an_object_of_ones_own_is_a_route() -> None:
    class Shuffle:
        def order(self, space: tuple[int, ...]) -> torch.Tensor:
            return torch.randperm(math.prod(space), generator=torch.Generator().manual_seed(0))

        def inverse(self, space: tuple[int, ...]) -> torch.Tensor:
            return self.order(space).argsort()

    mine = [parse_route(Shuffle()), CROSS[1]]
    x = torch.randn(1, 3, 4, 2)
    assert torch.allclose(routes.merge(routes.split(x, mine), mine, (3, 4)), 2 * x)
    with pytest.raises(ValueError, match="order and inverse"):
        parse_route(3)  # type: ignore[arg-type]
