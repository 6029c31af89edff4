"""The whole architecture on two screens. READ FIRST.

Letters used everywhere: B batch, L length, D model width, E inner width, H heads, P head dim, G groups, N state size, K convolution taps,
R low rank, V vocabulary. Tensors are (B, L, *space, D): axis 1 is the sequence, and ``space`` is empty for most layers.

- A **Mixer** looks across positions. A **CausalMixer** never looks ahead, so it carries a **State** in and out.
- A **Timeline** says where sequences begin, which positions exist, how much time passes (:mod:`statescan.timeline`).
- A **Route** reorders the positions of N-dimensional data and can undo it. A **Head** turns features into a task's output and loss.
- A **Spec** is a typed factory as data (:mod:`statescan.spec`): a parent takes ``mixer: Callable[[int], Mixer]`` and supplies the width.
- The **bus** is a dictionary made by a backbone for one call, for what is neither input nor state.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import UserDict
from collections.abc import MutableMapping, Sequence
from typing import Any, ClassVar, Protocol, final, runtime_checkable

import torch
from torch import Tensor

from statescan.parameters import Dynamic
from statescan.spec import Spec
from statescan.state import State
from statescan.timeline import Timeline

Bus = MutableMapping[str, Any]


class SharedBus(UserDict[str, Any]):
    """One object for all layers. What walks through the arguments of a module (FSDP) hands it a copy of any dict, where writes are lost."""


__all__ = ["Bus", "CausalMixer", "Head", "Mixer", "Route", "SharedBus", "Spec", "State", "Stateless", "Timeline"]


class Mixer(Dynamic):
    """Looks across positions. Subclasses say on the class what they can do; tests and backbones read it there."""

    has_time: ClassVar[bool] = False
    """Accepts ``timeline.interval``. A mixer without it raises when time passes unevenly."""
    holds_input: bool = False
    """``interval=2`` equals two unit steps with the input held (law 7): a promise of the discretisation, so an instance may decide."""
    batch_dependent: ClassVar[bool] = False
    """A row's output depends on the other rows (BatchNorm, capacity limits)."""
    space_ndim: ClassVar[int] = 0
    """How many spatial axes stand between the sequence and the width."""
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    """Keys of the bus, of the class or of an instance. A backbone checks them when it is built; a key is set once a call."""
    gathers_documents: ClassVar[bool] = False
    """Serves resets and masks through ``Timeline.apart``, whose calls depend on the data: not under torch.compile or torch.export."""
    folds_length: ClassVar[bool] = False
    """Lays positions out in rows: torch.export, which cannot follow a length that is divided, makes a program for one length."""
    unread: ClassVar[tuple[str, ...]] = ()
    """Parameters that another method than the forward reads: DDP around the layer alone must look for them (law 8)."""
    estimates_gradients: ClassVar[bool] = False
    """Its gradients are estimates for a function with jumps (straight through a rounding): law 4 compares them with no differences."""
    causal_tolerance: ClassVar[float] = 0.0
    """How much a change at position t may move the float32 output before t (law 3): zero for scans, rounding for an FFT."""
    memory: int | None = None
    """Existing positions after which the incoming state is gone, where that is so: law 4 looks for it in the outgoing one before that,
    and for nothing of it then. None: the state fades, and is never gone."""
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({},)
    """Small sets of constructor arguments, beside the width, under which the laws run."""
    residual_outputs: ClassVar[tuple[str, ...]] = ()
    """Names of the Linear modules that write into the residual stream; a deep backbone scales their initial weights."""

    @abstractmethod
    def forward(self, x: Tensor, timeline: Timeline | None = None, *, bus: Bus | None = None) -> Any:
        """(B, L, *space, D) -> (B, L, *space, D)."""


class CausalMixer(Mixer):
    """Never looks ahead. ``forward`` is THE implementation; everything else follows from it or must equal it."""

    @abstractmethod
    def forward(
        self,
        x: Tensor,
        timeline: Timeline | None = None,
        *,
        state: State | None = None,
        return_state: bool = False,
        bus: Bus | None = None,
    ) -> Any:
        """Any L >= 1; ``y``, or ``(y, state)`` with ``return_state``. Differentiable in and through the state.

        Without ``state`` a sequence starts from :meth:`init_state`.
        """

    @final
    def scan(self, x: Tensor, state: State | None = None, timeline: Timeline | None = None, bus: Bus | None = None) -> tuple[Tensor, State]:
        """``(y, state)``: a chunk. An alias of calling the module, so hooks, FSDP, DDP and checkpointing see every call."""
        return self(x, timeline, state=state, return_state=True, bus=bus)

    def step(self, x: Tensor, state: State, timeline: Timeline | None = None, bus: Bus | None = None) -> tuple[Tensor, State]:
        """One position: x (B, *space, D), timeline fields (B,). Equals a chunk of length one; override it where that is faster."""
        line = None if timeline is None else timeline.as_sequence()
        y, state = self(x.unsqueeze(1), line, state=state, return_state=True, bus=bus)
        return y.squeeze(1), state

    @abstractmethod
    def init_state(
        self,
        batch_size: int,
        *,
        space: Sequence[int] = (),
        capacity: int | None = None,
        context: Any = None,
        device: torch.device | str | None = None,
    ) -> State:
        """The state before the first position, learned where the layer learns it.

        ``capacity`` sizes a key-value cache; ``context`` is what an encoder-decoder layer attends to. Default device: the parameters'.
        """


class Stateless(CausalMixer):
    """Reads nothing but the positions and the bus of its call: its state is the empty tuple."""

    def init_state(
        self,
        batch_size: int,
        *,
        space: Sequence[int] = (),
        capacity: int | None = None,
        context: Any = None,
        device: torch.device | str | None = None,
    ) -> tuple[()]:
        """Nothing."""
        return ()


@runtime_checkable
class Route(Protocol):
    """Reorders positions of N-dimensional data and can undo it."""

    def order(self, space: Sequence[int]) -> Tensor:
        """Gather table, int64 (L',): raster index of each sequence position, for a grid of this shape."""
        ...

    def inverse(self, space: Sequence[int]) -> Tensor:
        """Sequence position of each raster index, int64 (L,); -1 where the route does not pass."""
        ...


@runtime_checkable
class Head(Protocol):
    """Features to a task's output, and its loss."""

    def __call__(self, features: Tensor) -> Tensor: ...

    def loss(self, output: Tensor, target: Tensor) -> Tensor: ...
