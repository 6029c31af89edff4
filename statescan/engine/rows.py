"""Small steps over a row of activations, as arithmetic: each operator adds a step to the program and gives the place of its result."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from statescan.engine.builder import Builder

_OPS = (
    "add", "subtract", "multiply", "divide", "maximum", "unless_empty",
    "copy", "exp", "expm1", "sigmoid", "silu", "tanh", "softplus", "gelu", "gelu_tanh", "root", "abs", "cos", "sin",
    "sum", "turn", "phase", "position",
)  # fmt: skip
_CODE = {name: code for code, name in enumerate(_OPS)}
_NONE, _PLACE, _FIXED, _BEFORE, _AFTER = range(5)
NOTHING = (_NONE, 0, 0, 0, 0)


@dataclass(frozen=True)
class Row:
    """``width`` numbers of every row of the batch: in the workspace, fixed for all rows, or in a state."""

    builder: Builder
    width: int
    at: int
    """Offset in the workspace; or the address of fixed numbers; or the number of a state."""
    space: int = _PLACE
    offset: int = 0
    stride: int = 0
    """Of a state: where the numbers begin, and how many a row of the batch has."""
    each: int = 0
    """n > 0: every number stands for n; n < 0: -n numbers, again and again."""

    @property
    def operand(self) -> tuple[int, ...]:
        """As the program takes it."""
        return (self.space, self.at, self.offset, self.stride, self.each)

    # -- parts ----------------------------------------------------------------------------------------------------------------

    def __getitem__(self, part: slice) -> Row:
        start, stop, _ = part.indices(self.width)
        if self.space == _PLACE:
            return replace(self, width=stop - start, at=self.at + start)
        return replace(self, width=stop - start, offset=self.offset + start)

    def split(self, *sizes: int) -> list[Row]:
        """Parts side by side."""
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        return [self[start : start + size] for start, size in zip(starts, sizes, strict=True)]

    def spread(self, n: int) -> Row:
        """Every number n times."""
        return self if n == 1 else replace(self, width=n * self.width, each=n)

    def again(self, times: int) -> Row:
        """The whole row so many times."""
        return self if times == 1 else replace(self, width=times * self.width, each=-self.width)

    # -- arithmetic -------------------------------------------------------------------------------------------------------------

    def __add__(self, other: Row | float) -> Row:
        return self.builder.step("add", self, other)

    def __sub__(self, other: Row | float) -> Row:
        return self.builder.step("subtract", self, other)

    def __mul__(self, other: Row | float) -> Row:
        return self.builder.step("multiply", self, other)

    def __truediv__(self, other: Row | float) -> Row:
        return self.builder.step("divide", self, other)

    def __neg__(self) -> Row:
        return self * -1.0

    def maximum(self, other: Row | float) -> Row:
        """The larger."""
        return self.builder.step("maximum", self, other)

    def unless_empty(self, n: Row) -> Row:
        """Itself, or what stands for minus infinity where n is zero."""
        return self.builder.step("unless_empty", self, n)

    def apply(self, name: str, to: Row | None = None) -> Row:
        """A function of one number: exp, expm1, sigmoid, silu, tanh, softplus, gelu, gelu_tanh, root, abs, cos or sin."""
        return self.builder.step(name, self, to=to)

    def exp(self) -> Row:
        """e to the power."""
        return self.apply("exp")

    def sigmoid(self) -> Row:
        """1 / (1 + e^-x)."""
        return self.apply("sigmoid")

    def log_sigmoid(self) -> Row:
        """The logarithm of the sigmoid."""
        return -(-self).apply("softplus")

    def copy(self, to: Row) -> Row:
        """Written there."""
        return self.apply("copy", to)

    def sum(self, size: int) -> Row:
        """Of each ``size`` neighbours."""
        return self.builder.step("sum", self, width=self.width // size, sizes=(size,))

    # -- norms: over each ``size`` neighbours ------------------------------------------------------------------------------------

    def unit(self, size: int, eps: float) -> Row:
        """Divided by sqrt(sum of squares + eps)."""
        return self / ((self * self).sum(size) + eps).apply("root").spread(size)

    def rms(self, size: int, eps: float) -> Row:
        """Divided by sqrt(mean of squares + eps)."""
        return self / ((self * self).sum(size) * (1 / size) + eps).apply("root").spread(size)

    def centred(self, size: int) -> Row:
        """Without the mean."""
        return self - (self.sum(size) * (1 / size)).spread(size)

    # -- rotations ----------------------------------------------------------------------------------------------------------------

    def turn(self, angle: Row, heads: int, apart: int, step: int = 1, shared: bool = True) -> Row:
        """In place: in each head, the pairs (i step, i step + apart) turn by an angle each, the same for all heads if ``shared``."""
        pairs = angle.width if shared else angle.width // heads
        sizes = (heads, self.width // heads, pairs, apart, step, 0 if shared else pairs)
        return self.builder.step("turn", angle.apply("cos"), angle.apply("sin"), to=self, sizes=sizes)


def write(builder: Builder, name: str, width: int, a: Row, b: Row | None, to: Row, sizes: tuple[int, ...]) -> None:
    """Adds a step to the program."""
    padded = (*sizes, *(0,) * (6 - len(sizes)))
    builder.program.step(_CODE[name], width, a.operand, NOTHING if b is None else b.operand, to.operand, padded)


def fixed(builder: Builder, tensor: Tensor) -> Row:
    """Numbers that every row of the batch shares: contiguous float32, kept alive by the caller."""
    return Row(builder, tensor.numel(), tensor.data_ptr(), _FIXED)


def stored(builder: Builder, number: int, width: int, *, after: bool) -> Row:
    """A state, before or after the step."""
    return Row(builder, width, number, _AFTER if after else _BEFORE, 0, width)
