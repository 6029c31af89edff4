"""A flat stack: residual blocks of one width, in the order that a pattern spells, and a last norm."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from statescan.blocks import EMBEDDING, Residual
from statescan.layers.embedding import Embedding
from statescan.layers.norm import NormKind, make_norm
from statescan.ops.frugal import frugal
from statescan.protocols import Bus, CausalMixer, Mixer, SharedBus, State
from statescan.registry import nearest, register
from statescan.state import state as declare_state
from statescan.timeline import Timeline, hide

Parts = Mapping[str, Callable[[int], nn.Module]]


@declare_state
class FlatState(NamedTuple):
    """One state a layer; the empty tuple for a layer without memory."""

    layers: tuple[Any, ...]


def spell(pattern: str, names: Sequence[str]) -> list[str]:
    """The part names a pattern stands for: ``"M*3"`` is M M M, ``"(MMA)*2"`` is M M A M M A. A name is one letter."""
    text = pattern.replace(" ", "")
    repeat = re.compile(r"(\(([A-Za-z]+)\)|([A-Za-z]))\*(\d+)")
    while match := repeat.search(text):
        text = text[: match.start()] + (match[2] or match[3]) * int(match[4]) + text[match.end() :]
    text = re.sub(r"\(([A-Za-z]+)\)", r"\1", text)
    if not text or not text.isalpha():
        raise ValueError(f"layers must spell part names, for example 'M*24' or '(MMA)*8'; got {pattern!r}")
    for name in text:
        if name not in names:
            raise ValueError(f"layers={pattern!r} names a part {name!r} that parts does not have{nearest(name, names)}")
    return list(text)


@register
class FlatBackbone(nn.Module):
    """Residual blocks in a row.

    Args:
        d_model: width D.
        layers: pattern over the names of ``parts``: ``"M*24"``, ``"(MMA)*8"``.
        parts: name (one letter) -> factory of a mixer or layer, given the width; or of a whole :class:`Residual` block, which brings its
            own norm and scale. Blocks of one name have those modules in common that their class names under ``shared``.
        vocab_size: with it, the input is token ids (B, L) and an embedding comes first.
        norm_eps: of every norm.
        residual_in_fp32: keep the residual stream in float32 whatever the layers' dtype.
        norm_f: normalise the last stream.
        norm: kind of every norm: "rms", "layer", or scaled by 1 + weight "rms_offset", "layer_offset" (without bias).
        embedding_scale: fixed multiplier of what the embedding gives.
        embedding_norm: normalise what the embedding gives (RWKV).
        residual_scale: fixed multiplier of what each layer adds to the stream.
        dropout: of what each layer adds to the stream, in training.

    The contract is a causal mixer's; the state is a :class:`FlatState`. With a part that looks ahead there is no state.
    ``gradient_checkpointing = True`` recomputes blocks in the backward pass.
    """

    def __init__(
        self,
        d_model: int,
        layers: str,
        parts: Parts,
        vocab_size: int | None = None,
        norm_eps: float = 1e-5,
        residual_in_fp32: bool = True,
        norm_f: bool = True,
        norm: NormKind = "rms",
        embedding_scale: float = 1.0,
        embedding_norm: bool = False,
        residual_scale: float = 1.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1); got {dropout}")
        if any(len(name) != 1 or not name.isalpha() for name in parts):
            raise ValueError(f"names of parts are single letters; got {sorted(parts)}")
        names = spell(layers, list(parts))
        self.d_model, self.residual_in_fp32, self.gradient_checkpointing = d_model, residual_in_fp32, False
        if vocab_size is not None:
            self.embedding: nn.Embedding = Embedding(vocab_size, d_model)
            nn.init.normal_(self.embedding.weight, std=0.02)
        self.embedding_scale = float(embedding_scale)
        self.embedding_norm = make_norm(norm, d_model, norm_eps) if embedding_norm else None
        first: dict[str, nn.Module] = {}
        self.layers = nn.ModuleList()
        for name in names:
            layer = parts[name](d_model)
            if not isinstance(layer, Residual):
                layer = Residual(d_model, layer, norm_eps, norm, residual_scale, dropout)
            for path in layer.shared:
                layer.set_submodule(path, first.setdefault(name, layer).get_submodule(path))
            self.layers.append(layer)
        self.norm_f = make_norm(norm, d_model, norm_eps) if norm_f else nn.Identity()
        self._check_bus()
        self._scale_residual_outputs()

    def _check_bus(self) -> None:
        written = {EMBEDDING}
        for i, layer in enumerate(self.layers):
            mixer = layer.mixer
            if isinstance(mixer, Mixer):
                missing = set(mixer.reads) - written
                if missing:
                    raise ValueError(f"layer {i} ({type(mixer).__name__}) reads {sorted(missing)}, which no layer before it writes")
                written |= set(mixer.writes)

    @torch.no_grad()
    def _scale_residual_outputs(self) -> None:
        """What writes into the stream starts smaller by the root of the number of writers; biases of Linear modules start at zero."""
        for layer in self.layers:
            if isinstance(layer.mixer, Mixer):
                for name in layer.mixer.residual_outputs:
                    output = layer.mixer.get_submodule(name)
                    nn.init.kaiming_uniform_(output.weight, a=math.sqrt(5))  # type: ignore[arg-type]
                    output.weight.div_(math.sqrt(len(self.layers)))  # type: ignore[operator]

    def forward(
        self,
        x: Tensor,
        timeline: Timeline | None = None,
        *,
        state: FlatState | None = None,
        return_state: bool = False,
        bus: Bus | None = None,
    ) -> Any:
        """(B, L, D), or ids (B, L) with an embedding -> (B, L, D); zeros at positions that do not exist."""
        if state is not None and len(state.layers) != len(self.layers):
            raise ValueError(f"the state has {len(state.layers)} layers, the model {len(self.layers)}: it belongs to another model")
        if hasattr(self, "embedding"):
            x = self.embed(hide(x, timeline))
        x = hide(x, timeline)
        if self.residual_in_fp32 and x.dtype != torch.float64:
            x = x.float()
        bus = SharedBus() if bus is None else bus
        bus[EMBEDDING] = x
        states = []
        for i, layer in enumerate(self.layers):
            before = None if state is None else state.layers[i]
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x, after = checkpoint(layer, x, timeline, state=before, bus=bus, use_reentrant=False)  # type: ignore[misc]
            else:
                with frugal(x):
                    x, after = layer(x, timeline, state=before, bus=bus)
            states.append(after)
        y = hide(self.norm_f(x), timeline)
        return (y, FlatState(tuple(states))) if return_state else y

    def embed(self, ids: Tensor) -> Tensor:
        """Ids (...) -> the stream (..., D) that the first layer reads."""
        x = self.embedding(ids)
        if self.embedding_scale != 1:
            x = x * self.embedding_scale
        return x if self.embedding_norm is None else self.embedding_norm(x)

    def scan(
        self, x: Tensor, state: FlatState | None = None, timeline: Timeline | None = None, bus: Bus | None = None
    ) -> tuple[Tensor, State]:
        """``(y, state)``: a chunk."""
        return self(x, timeline, state=state, return_state=True, bus=bus)

    def step(self, x: Tensor, state: FlatState, timeline: Timeline | None = None, bus: Bus | None = None) -> tuple[Tensor, State]:
        """One position: x (B, D), or ids (B,)."""
        line = None if timeline is None else timeline.as_sequence()
        y, state = self(x.unsqueeze(1), line, state=state, return_state=True, bus=bus)
        return y.squeeze(1), state

    def init_state(
        self,
        batch_size: int,
        *,
        space: Sequence[int] = (),
        capacity: int | None = None,
        context: Any = None,
        device: torch.device | str | None = None,
    ) -> FlatState:
        """Every layer's."""
        if not self.causal:
            raise ValueError("a part of this backbone looks ahead, so there is no state")
        where: dict[str, Any] = {"space": space, "capacity": capacity, "context": context, "device": device}
        return FlatState(tuple(layer.init_state(batch_size, **where) for layer in self.layers))  # type: ignore[operator]

    @property
    def causal(self) -> bool:
        """No part looks ahead."""
        return all(isinstance(layer.mixer, CausalMixer) or not isinstance(layer.mixer, Mixer) for layer in self.layers)
