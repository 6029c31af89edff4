"""``Mamba`` and ``Mamba2`` with mamba_ssm's constructors, calls and caches, over this library's mixers of the same names.

A cache is what the original keeps: ``conv_state`` with all K columns, (B, channels, K), and ``ssm_state``, both changed in place. It is the
same information as this library's state, plus one column that no computation reads.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from statescan import mixers
from statescan.protocols import Bus
from statescan.state import State
from statescan.timeline import Timeline


@dataclass
class InferenceParams:
    """What the original's layers read of theirs: how far a sequence has got, and the caches by layer."""

    max_seqlen: int
    max_batch_size: int
    seqlen_offset: int = 0
    batch_size_offset: int = 0
    key_value_memory_dict: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    lengths_per_sample: Tensor | None = None

    def reset(self, max_seqlen: int, max_batch_size: int) -> None:
        """Start a new sequence."""
        self.max_seqlen, self.max_batch_size, self.seqlen_offset = max_seqlen, max_batch_size, 0
        if self.lengths_per_sample is not None:
            self.lengths_per_sample.zero_()


class _Layer(Protocol):
    layer_idx: int | None

    def scan(self, x: Tensor, state: State | None = None, timeline: Timeline | None = None) -> tuple[Tensor, Any]: ...

    def allocate_inference_cache(self, batch_size: int, max_seqlen: int) -> tuple[Tensor, Tensor]: ...


def _cached(layer: _Layer, inference_params: Any, rows: int) -> tuple[Tensor, Tensor]:
    """This layer's cache, made on its first use; zeroed where a sequence begins."""
    if layer.layer_idx is None:
        raise ValueError("inference_params need a layer that knows its place: construct it with layer_idx=0, 1, ...")
    caches = inference_params.key_value_memory_dict
    if layer.layer_idx not in caches:
        caches[layer.layer_idx] = layer.allocate_inference_cache(rows, inference_params.max_seqlen)
    conv_state, ssm_state = caches[layer.layer_idx]
    if conv_state.shape[0] != rows:
        raise ValueError(
            f"the cache of layer {layer.layer_idx} has {conv_state.shape[0]} rows, the input {rows}: start with new inference_params"
        )
    if inference_params.seqlen_offset == 0:
        conv_state.zero_()
        ssm_state.zero_()
    return conv_state, ssm_state


def _advance(
    layer: _Layer, make: Callable[[Tensor, Tensor], State], x: Tensor, conv_state: Tensor, ssm_state: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Run from the cache and update it in place. Rows of different lengths stand at the right end, told by ``mask``."""
    state = make(conv_state[..., 1:].transpose(1, 2), ssm_state)
    pieces = []
    if x.shape[1] > 1:  # all but the last position apart: its state holds the cache's oldest column
        y, state = layer.scan(x[:, :-1], state, None if mask is None else Timeline(mask=mask[:, :-1]))
        pieces.append(y)
    y, last = layer.scan(x[:, -1:], state)
    with torch.no_grad():
        columns = torch.cat([state.conv[:, :1], last.conv], dim=1).transpose(1, 2)
        conv_state[..., conv_state.shape[2] - columns.shape[2] :].copy_(columns)
        ssm_state.copy_(last.ssm)
    return torch.cat([*pieces, y], dim=1)


def _placed(device: Any) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext() if device is None else torch.device(device)


class Mamba(mixers.Mamba):
    """mamba_ssm's ``Mamba``. ``use_fast_path`` is accepted and means nothing here: every path computes the same.

    Beside the original's calls, ``scan(x, state, timeline)`` takes and returns this library's state.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2,
        dt_rank: int | Literal["auto"] = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: Literal["random", "constant"] = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
        use_fast_path: bool = True,
        layer_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        with _placed(device):
            super().__init__(d_model, d_state, d_conv, expand, dt_rank, dt_min, dt_max, dt_init, dt_scale, dt_init_floor, conv_bias, bias)
        self.expand, self.layer_idx, self.use_fast_path, self.activation = expand, layer_idx, use_fast_path, "silu"
        self.to(dtype)

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        inference_params: Any = None,
        *,
        state: mixers.MambaState | None = None,
        return_state: bool = False,
        bus: Bus | None = None,
    ) -> Any:
        """(B, L, D) -> (B, L, D); with ``inference_params`` the layer's cache goes on from ``seqlen_offset``, by any number of tokens.

        A Timeline in the place of ``inference_params`` is what ``scan`` passes.
        """
        if inference_params is None or isinstance(inference_params, Timeline):
            return super().forward(hidden_states, inference_params, state=state, return_state=return_state, bus=bus)
        conv_state, ssm_state = _cached(self, inference_params, hidden_states.shape[0])
        return _advance(self, mixers.MambaState, hidden_states, conv_state, ssm_state)

    def step(self, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        """One token, (B, 1, D): the output, and the cache, which is changed in place."""
        return _advance(self, mixers.MambaState, _one(hidden_states), conv_state, ssm_state), conv_state, ssm_state

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Zeros: conv_state (B, E, K), ssm_state (B, E, N). Further arguments are accepted, as in the original, and mean nothing."""
        weight = self.conv1d.weight
        where: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype if dtype is None else dtype}
        shape = (batch_size, self.d_inner)
        return torch.zeros(*shape, self.d_conv, **where), torch.zeros(*shape, self.d_state, **where)


class Mamba2(mixers.Mamba2):
    """mamba_ssm's ``Mamba2``. Where the default head size does not divide the width it takes the largest that does, with a warning.

    Not here: splitting one layer over processes (``process_group``). ``use_mem_eff_path`` and ``sequence_parallel`` are accepted and mean
    nothing. Beside the original's calls, ``scan(x, state, timeline)`` takes and returns this library's state.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 128,
        d_conv: int = 4,
        conv_init: float | None = None,
        expand: float = 2,
        headdim: int = 64,
        d_ssm: int | None = None,
        ngroups: int = 1,
        A_init_range: tuple[float, float] = (1, 16),
        D_has_hdim: bool = False,
        rmsnorm: bool = True,
        norm_before_gate: bool = False,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        dt_limit: tuple[float, float] = (0.0, float("inf")),
        bias: bool = False,
        conv_bias: bool = True,
        chunk_size: int = 256,
        use_mem_eff_path: bool = True,
        layer_idx: int | None = None,
        process_group: None = None,
        sequence_parallel: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if process_group is not None:
            raise ValueError("process_group must be None: one layer is not split over processes here; use DDP or FSDP around the model")
        default = inspect.signature(Mamba2).parameters["headdim"].default
        width = int(expand * d_model) if d_ssm is None else d_ssm
        with _placed(device):
            super().__init__(
                d_model, d_state, d_conv, expand, None if headdim == default and width % headdim else headdim, d_ssm, ngroups,
                A_init_range, D_has_hdim, rmsnorm, norm_before_gate, dt_min, dt_max, dt_init_floor, dt_limit, bias, conv_bias, conv_init,
                chunk_size,
            )  # fmt: skip
        self.expand, self.layer_idx, self.use_mem_eff_path, self.activation = expand, layer_idx, use_mem_eff_path, "silu"
        self.d_inner, self.D_has_hdim, self.norm_before_gate = self.d_ssm + self.d_mlp, D_has_hdim, norm_before_gate
        self.conv_init, self.process_group, self.sequence_parallel = conv_init, process_group, sequence_parallel
        self.to(dtype)

    def forward(  # type: ignore[override]
        self,
        u: Tensor,
        seqlen: int | Timeline | None = None,
        seq_idx: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        inference_params: Any = None,
        *,
        state: mixers.Mamba2State | None = None,
        return_state: bool = False,
        bus: Bus | None = None,
    ) -> Any:
        """(B, L, D) -> (B, L, D), or (B L, D) -> (B L, D) with ``seqlen`` = L.

        ``seq_idx`` (B, L) numbers the documents of a row, -1 is padding; ``cu_seqlens`` gives the borders in a batch of one row. With
        ``inference_params`` the layer's cache goes on from ``seqlen_offset``, by any number of tokens; with ``cu_seqlens`` it gets one
        row a document. A Timeline in the place of ``seqlen`` is what ``scan`` passes.
        """
        if isinstance(seqlen, Timeline) or (seqlen is None and seq_idx is None and cu_seqlens is None and inference_params is None):
            return super().forward(u, seqlen, state=state, return_state=return_state, bus=bus)
        x = u if seqlen is None else u.unflatten(0, (-1, seqlen))
        if inference_params is None:
            line = Timeline.from_seq_idx(seq_idx) if seq_idx is not None else None
            line = line if cu_seqlens is None or line is not None else Timeline.from_cu_seqlens(cu_seqlens)
            y = super().forward(x, line, state=state, return_state=return_state, bus=bus)
        elif cu_seqlens is not None and inference_params.seqlen_offset == 0:
            y = self._read_documents(x, cu_seqlens, inference_params)
        elif seq_idx is not None:
            raise ValueError("inference_params with seq_idx: a row of documents has no one state; give cu_seqlens, or one document a row")
        else:
            y = _advance(self, mixers.Mamba2State, x, *_cached(self, inference_params, x.shape[0]))
        return y if seqlen is None else y.flatten(0, 1)

    def _read_documents(self, x: Tensor, cu_seqlens: Tensor, inference_params: Any) -> Tensor:
        """Documents of one row as rows of their own that end together; the cache then has one row a document."""
        if x.shape[0] != 1:
            raise ValueError(f"cu_seqlens describes a batch of one row; got {x.shape[0]} rows")
        lengths = cu_seqlens.diff().long()
        if int(lengths.min()) < 1:
            raise ValueError(f"every document needs a token; got lengths {lengths.tolist()}")
        offsets = torch.arange(int(lengths.max()), device=x.device) - int(lengths.max())
        index = cu_seqlens[1:, None].long() + offsets[None]
        mask = index >= cu_seqlens[:-1, None]
        cache = _cached(self, inference_params, len(lengths))
        y = _advance(self, mixers.Mamba2State, x[0, index.clamp(min=0)], *cache, mask=mask)
        return y[mask][None]

    def step(self, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        """One token, (B, 1, D): the output, and the cache, which is changed in place."""
        return _advance(self, mixers.Mamba2State, _one(hidden_states), conv_state, ssm_state), conv_state, ssm_state

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Zeros: conv_state (B, E + 2 G N, K), ssm_state (B, H, P, N). Further arguments are accepted, as in the original."""
        weight = self.conv1d.weight
        where: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype if dtype is None else dtype}
        conv_state = torch.zeros(batch_size, self.d_conv, weight.shape[0], **where).transpose(1, 2)
        return conv_state, torch.zeros(batch_size, self.nheads, self.headdim, self.d_state, **where)


def _one(hidden_states: Tensor) -> Tensor:
    if hidden_states.ndim != 3 or hidden_states.shape[1] != 1:
        raise ValueError(f"step takes one token, (batch, 1, d_model); got {tuple(hidden_states.shape)}: call the layer, or scan, for more")
    return hidden_states
