"""The engine: a language model's step as one native program, with the model's own modules called where they must be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor

from statescan.backbones import FlatState
from statescan.blocks import EMBEDDING, PostNorm, Residual
from statescan.engine.builder import OUTPUT, Builder, Unplain, Workspace
from statescan.engine.steps import LOWERINGS
from statescan.heads import LanguageModel
from statescan.heads.language import LogitsAt
from statescan.layers.prompt_products import products_of
from statescan.mixers import Attention, LogLinearGatedDeltaNet, LogLinearMamba2
from statescan.mixers.attention import GrowingAttentionState
from statescan.ops import native_gate as gate
from statescan.ops import pages
from statescan.protocols import Bus
from statescan.timeline import Timeline


class _Part(NamedTuple):
    """A piece of the model: how it is written as instructions, how it is called, and the layer whose state it holds."""

    name: str
    write: Callable[[Builder], None]
    call: Callable[[_Step], None]
    layer: int | None = None


@dataclass
class _Step:
    """What the segments of one step share."""

    model: LanguageModel
    ids: Tensor
    rows: Tensor
    """(B, floats): the workspace."""
    before: FlatState
    after: list[Any]
    logits: Tensor
    bus: Bus
    inplace: bool
    known: dict[_Native, _Own]
    """The programs whose last step in place left just these states: they need no second look."""


class _Own(NamedTuple):
    """What a step in place has written: the tensors, their addresses, and their rooms (second sizes)."""

    tensors: list[ref[Tensor]]
    addresses: list[int]
    rooms: list[int]


class Engine:
    """Inference over a :class:`~statescan.LanguageModel`, with its contract: ``scan`` a prompt, then ``step`` token by token.

    A step reads every weight once, where it lies: float32, bfloat16 or quantised (:func:`statescan.quantize`). All threads run one
    program of instructions over fixed tiles, so the result has the same bits at any number of threads, and a row has the same bits alone
    and in a batch. Activations are float32 whatever the weights' storage, and so are the logits.

    Only plain modules are read: exactly ``nn.Linear`` and the library's own layers, without hooks, parametrisations or tensor
    subclasses, on the CPU. A layer that is anything else is called as ever, and ``engine.called`` says which and why. A weight that
    changes after the engine was made makes the next step raise: make a new engine (it costs milliseconds and copies no matrix). Hooks
    added later are not seen.
    """

    def __init__(self, model: LanguageModel) -> None:
        if not isinstance(model, LanguageModel):
            raise ValueError(f"Engine takes a LanguageModel; got {type(model).__name__}: call the model's own scan and step")
        pages.release()  # of a training that may have been
        self.model = model
        self.called: dict[str, str] = {}
        """The parts of the model that are called instead of read, and why."""
        self._workspace = Workspace()
        d_model = model.d_model
        self._stream, self._hidden = self._workspace.reserve(d_model), self._workspace.reserve(d_model)
        for layer in model.backbone.layers:
            for name in getattr(layer.mixer, "writes", ()):
                self._workspace.shelf[name] = self._workspace.reserve(d_model)
        self._workspace.mark()
        self._segments: list[Callable[[_Step], None]] = []
        self._natives: list[_Native] = []
        self._watched: list[tuple[dict[str, Any], str]] = []
        self._lent: dict[int, dict[str, int]] = {}
        """A called layer -> what the program below it has left on the bus, and where."""
        native: _Native | None = None
        for part in self._parts():
            reason = self._why_not(part)
            if reason is not None:
                self.called[part.name] = reason
                self._segments.append(part.call)
                if part.layer is not None:  # what it leaves on the bus is not in the program's place
                    self._lent[part.layer] = dict(self._workspace.bus)
                    for name in getattr(model.backbone.layers[part.layer].mixer, "writes", ()):
                        self._workspace.bus.pop(name, None)
                native = None
                continue
            if native is None:
                native = _Native(Builder(self._workspace))
                self._natives.append(native)
                self._segments.append(native.run)
            part.write(native.builder)
            self._workspace.release()
            if part.layer is not None:
                native.add_layer(part.layer, model.backbone.layers[part.layer].mixer)
            self._watched += native.builder.watched
            native.builder.watched = []
        self._seen = self._fingerprint()

    # -- the model's contract ---------------------------------------------------------------------------------------------------

    def init_state(self, batch_size: int) -> FlatState:
        """The state before the first token."""
        return self.model.init_state(batch_size)

    @torch.no_grad()
    def scan(
        self, ids: Tensor, state: FlatState | None = None, timeline: Timeline | None = None, *, logits_at: LogitsAt = "all"
    ) -> tuple[Tensor, FlatState]:
        """A chunk: ids (B, L) -> float32 logits (B, L, V), or (B, V) at one position a row, and the state.

        The model's own scan, its bfloat16 weights widened tile by tile where the processor has no instructions for them.
        """
        with products_of(self.model):
            logits, state = self.model.scan(ids, state, timeline, logits_at=logits_at)
        return logits.float(), state

    @torch.no_grad()
    def step(self, ids: Tensor, state: FlatState, timeline: Timeline | None = None, *, inplace: bool = False) -> tuple[Tensor, FlatState]:
        """One token a row: ids (B,) -> float32 logits (B, V) and the state. Rows may be of any age.

        ``inplace=True`` writes the new state over the given one, where that is float32 and contiguous: half the memory traffic of a
        large state, and of log-linear attention only the levels that hold something. A timeline takes the model's own step.
        """
        if timeline is not None:
            logits, state = self.model.step(ids, state, timeline)
            return logits.float(), state
        if ids.ndim != 1 or ids.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"ids must be integers of shape (batch,); got {ids.dtype} {tuple(ids.shape)}")
        if len(state.layers) != len(self.model.backbone.layers):
            raise ValueError(f"the state has {len(state.layers)} layers, the model {len(self.model.backbone.layers)}")
        if self._fingerprint() != self._seen:
            raise RuntimeError("a weight of the model changed after the engine was made: make a new Engine(model)")
        batch = ids.shape[0]
        step = _Step(
            model=self.model,
            ids=ids.long().contiguous(),
            rows=torch.empty(batch, self._workspace.stride, dtype=torch.float32),
            before=state,
            after=[()] * len(state.layers),
            logits=torch.empty(batch, self.model.lm_head.out_features, dtype=torch.float32),
            bus={},
            inplace=inplace,
            known={},
        )
        for native in self._natives:  # before anything is written in place
            native.check(step)
        for segment in self._segments:
            segment(step)
        return self.model.bounded(step.logits), FlatState(tuple(step.after))

    def __repr__(self) -> str:
        parts = 2 + len(self.model.backbone.layers)
        lines = [f"Engine: {parts - len(self.called)} of {parts} parts run natively ({gate.instruction_set()})"]
        return "\n".join(lines + [f"  {name} is called: {why}" for name, why in self.called.items()])

    # -- making it ----------------------------------------------------------------------------------------------------------------

    def _parts(self) -> list[_Part]:
        backbone, head = self.model.backbone, self.model.lm_head

        def embed(step: _Step) -> None:
            x = backbone.embed(step.ids)
            self._rows(step)[:] = x
            step.bus[EMBEDDING] = x.unsqueeze(1)

        def lookup(b: Builder) -> None:
            if any(type(layer) not in (Residual, PostNorm) for layer in backbone.layers):
                raise Unplain("a layer above may read what the embedding gives")
            b.embed(backbone.embedding, self._stream)
            stream = x = b.row(self.model.d_model, self._stream)
            if backbone.embedding_scale != 1:
                x = x * backbone.embedding_scale
            if backbone.embedding_norm is not None:
                x = b.normed(backbone.embedding_norm, x)
            if x is not stream:
                x.copy(stream)

        def finish(b: Builder) -> None:
            b.norm(backbone.norm_f, self._stream, self._hidden)
            b.linear(head, self._hidden, OUTPUT)

        def logits(step: _Step) -> None:
            h = backbone.norm_f(self._rows(step))
            step.logits = head(h).float()

        parts = [_Part("embedding", lookup, embed)]
        parts += [self._layer(i, layer) for i, layer in enumerate(backbone.layers)]
        return [*parts, _Part("head", finish, logits)]

    def _layer(self, i: int, layer: Any) -> _Part:
        def write(b: Builder) -> None:
            b.read(layer, Residual, PostNorm)
            lowering = LOWERINGS.get(type(layer.mixer))
            if lowering is None:
                raise Unplain(f"there is no native step for {type(layer.mixer).__name__}")
            if layer.scale != 1:
                raise Unplain("what the layer adds is scaled")
            b.read(layer.mixer, type(layer.mixer))
            if type(layer) is Residual:
                b.norm(layer.norm, self._stream, self._hidden)
                lowering(b, layer.mixer, self._hidden, self._stream)
                return
            stream, added = (b.row(self.model.d_model, at) for at in (self._stream, self._hidden))
            (stream * 0.0).copy(added)
            lowering(b, layer.mixer, stream.at, added.at)
            (stream + b.normed(layer.norm, added)).copy(stream)

        def call(step: _Step) -> None:
            kind = next((p.dtype for p in layer.mixer.parameters()), step.rows.dtype)
            for name, at in self._lent[i].items():
                step.bus[name] = step.rows[:, None, at : at + self.model.d_model].to(kind)
            x, after = layer(self._rows(step).unsqueeze(1), None, state=step.before.layers[i], bus=step.bus)
            self._rows(step)[:] = x.squeeze(1)
            step.after[i] = after

        return _Part(f"layer {i}", write, call, i)

    def _rows(self, step: _Step) -> Tensor:
        """(B, D): the residual stream in the workspace."""
        return step.rows[:, self._stream : self._stream + self.model.d_model]

    def _why_not(self, part: _Part) -> str | None:
        """Tries the part on a builder that is thrown away."""
        if gate.module is None:
            return gate.unavailable
        try:
            part.write(Builder(self._workspace.trial()))
        except Unplain as reason:
            return str(reason)
        return None

    def _fingerprint(self) -> tuple[list[int], list[int]]:
        """Address and version of every weight that is read: changes in place, replaced parameters and moved storage all show."""
        tensors = [owner.get(name) for owner, name in self._watched]  # a parametrisation takes it away
        return [-1 if t is None else t.data_ptr() for t in tensors], [-1 if t is None else t._version for t in tensors]


class _Native:
    """A run of parts in one program, and the states that it advances."""

    def __init__(self, builder: Builder) -> None:
        self.builder = builder
        self.layers: list[tuple[int, int, int]] = []
        """(layer, first state, end)"""
        self.caches: list[int] = []
        """Layers whose cache may fill up: of constant size, without a window."""
        self.levels: list[int] = []
        """Layers of log-linear attention."""
        self._own: _Own | None = None

    def add_layer(self, layer: int, mixer: Any) -> None:
        """The states that the builder has declared since the last layer are this layer's."""
        first = self.layers[-1][2] if self.layers else 0
        self.layers.append((layer, first, len(self.builder.state_shapes)))
        if type(mixer) is Attention and mixer.window is None:
            self.caches.append(layer)
        if isinstance(mixer, LogLinearMamba2 | LogLinearGatedDeltaNet):
            self.levels.append(layer)

    def check(self, step: _Step) -> None:
        """The states are those of these layers, and have room."""
        batch = step.ids.shape[0]
        own = self._own
        if own is not None and step.inplace and self._is_own(step.before, batch, own):
            step.known[self] = own
        for layer, first, end in () if self in step.known else self.layers:
            state = step.before.layers[layer]
            shapes = self.builder.state_shapes[first:end]
            right = len(state) == len(shapes) and all(_fits(t, (batch, *shape)) for t, shape in zip(state, shapes, strict=True))
            if not right or len({t.shape[1] for t, shape in zip(state, shapes, strict=True) if shape[:1] == (-1,)}) > 1:
                got = [tuple(t.shape) for t in state]
                raise ValueError(f"the state of layer {layer} has shapes {got}; expected {[(batch, *shape) for shape in shapes]}")
        for layer in self.levels if step.inplace and self not in step.known else ():
            _check_levels(layer, *step.before.layers[layer][-2:])
        for layer in self.caches:
            if not isinstance(step.before.layers[layer], GrowingAttentionState):
                _check_room(step.before.layers[layer])

    def _is_own(self, state: FlatState, batch: int, own: _Own) -> bool:
        """Whether these are the very tensors that the last step in place left, where they were."""
        tensors = [t for layer, _, _ in self.layers for t in state.layers[layer]]
        return (
            len(tensors) == len(own.tensors)
            and all(left() is t for left, t in zip(own.tensors, tensors, strict=True))
            and [t.data_ptr() for t in tensors] == own.addresses
            and all(len(t) == batch for t in tensors[:1])
        )

    def run(self, step: _Step) -> None:
        """Advance workspace, states and logits."""
        own = step.known.get(self)
        if own is not None:
            self._run(step, own.addresses, own.addresses, own.rooms, own.rooms)
            for layer, _, _ in self.layers:
                step.after[layer] = step.before.layers[layer]
            return
        batch = step.ids.shape[0]
        before: list[Tensor] = []
        after: list[Tensor] = []
        for layer, first, _ in self.layers:
            state = step.before.layers[layer]
            counts = self.builder.counts
            old = [(t.long() if i in counts else t.float()).contiguous() for i, t in enumerate(state, first)]
            before += old
            if isinstance(state, GrowingAttentionState):
                after += [t.new_empty(batch, t.shape[1] + 1, *t.shape[2:]) if t.ndim > 1 else t.clone() for t in old]
            else:
                after += old if step.inplace else [torch.empty_like(t) for t in old]
        addresses, rooms = ([t.data_ptr() for t in after], [t.shape[1] if t.ndim > 1 else 0 for t in after])
        self._run(step, [t.data_ptr() for t in before], addresses, [t.shape[1] if t.ndim > 1 else 0 for t in before], rooms)
        for layer, first, end in self.layers:
            step.after[layer] = type(step.before.layers[layer])(*after[first:end])
        in_place = step.inplace and all(new is old for new, old in zip(after, before, strict=True))
        self._own = _Own([ref(t) for t in after], addresses, rooms) if in_place else None

    def _run(self, step: _Step, before: list[int], after: list[int], room_before: list[int], room_after: list[int]) -> None:
        batch = step.ids.shape[0]
        self.builder.program.run(
            gate.threads(2 * self.builder.products * batch), batch, step.ids.data_ptr(), step.rows.data_ptr(), step.rows.stride(0),
            step.logits.data_ptr(), step.logits.shape[1], before, after, room_before, room_after,
        )  # fmt: skip


def _check_room(state: Any) -> None:
    """A cache of constant size and without a window holds all positions."""
    keys, _, position = state
    if position.numel() and int(position.max()) >= keys.shape[1]:
        raise ValueError(
            f"the cache holds {keys.shape[1]} positions and a row has {int(position.max()) + 1}: give init_state a larger capacity"
        )


def _check_levels(layer: int, s: Tensor, position: Tensor) -> None:
    """A step in place passes by the levels (B, H, M, K, V) on which so many positions (B,) cannot have left anything."""
    older, level = (position - 1).unsqueeze(1), torch.arange(s.shape[2])
    filled = (older >> (level - 1).clamp(min=0)) & 1 > 0
    filled[:, -1:] = older >> max(len(level) - 2, 0) > 0
    filled[:, 0] = True
    if bool(((s != 0).flatten(3).any(-1).any(1) & ~(filled & (older >= 0))).any()):
        raise ValueError(
            f"layer {layer} holds something on a level that {position.tolist()} positions leave empty: "
            "a state that no call has returned takes inplace=False first"
        )


def _fits(tensor: Tensor, shape: tuple[int, ...]) -> bool:
    """-1 is any number."""
    return tensor.ndim == len(shape) and all(got == wanted or wanted < 0 for got, wanted in zip(tensor.shape, shape, strict=True))
