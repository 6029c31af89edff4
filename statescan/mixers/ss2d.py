"""SS2D: the selective scan over an image, along several routes at once.

Paper: Liu et al., "VMamba: Visual State Space Model", 2024, https://arxiv.org/abs/2401.10166.
The tensors of the parameters are those of the released checkpoints (``x_proj`` and ``dt_projs`` hold their ``x_proj_weight`` and so on).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan.layers.delta import init_delta_bias
from statescan.layers.grouped import GroupedLinear
from statescan.layers.linear import Linear
from statescan.layers.vision import DepthwiseConv2d
from statescan.ops import selective_scan
from statescan.protocols import Bus, Mixer, Route
from statescan.registry import register
from statescan.routes import merge, parse_route, prepare, reorder, split, timelines
from statescan.routes.base import Tables
from statescan.timeline import Timeline

CROSS = ("row", "col", "reverse(row)", "reverse(col)")
"""The cross-scan: the order in which checkpoints hold the routes."""


@register
class SS2D(Mixer):
    """The selective mixer over maps (B, H, W, D); every route k has its own step, maps and dynamics::

        [x, z]      = in_proj(u)                                       (z only with ``gate``)
        x           = silu(conv2d(x))                                  (depthwise)
        x_k         = x in the order of route k                        (B, L, E), L = H W
        [r, B, C]_k = x_proj_k(x_k)
        delta_k     = softplus(dt_projs_k(r_k))
        h_t         = exp(delta_t A) h_{t-1} + delta_t B_t x_t,  y_t = C_t h_t + D x_t,  A = -exp(A_logs)      for each k
        y           = out_norm(sum over k of y_k back on the map)      (so the skips D add up over the routes)
        u'          = out_proj(y * silu(z))

    Args:
        d_model: width D.
        d_state: states a channel, N.
        ssm_ratio: inner width E = ssm_ratio * d_model.
        dt_rank: rank of the step's projection; "auto" is ceil(d_model / 16).
        d_conv: side of the depthwise convolution, odd; 1 leaves it out.
        conv_bias: bias of the convolution.
        gate: the gated form of the first VMamba ("v0"); without it, that of the final one ("v05_noz").
        routes: names of the routes (:mod:`statescan.routes`); each must visit every cell. A route with line starts resets the state there.
        dt_min, dt_max: initial steps are log-uniform between them.
        dt_init_floor: initial steps are at least this.
        dropout: behind out_proj.
        bias: biases of in_proj and out_proj.

    Shapes: (B, H, W, D) -> (B, H, W, D). It looks everywhere, so it has no state. Axis 1, the sequence of the contract, is H: a
    timeline's mask (B, H) takes rows out of a map, and its resets cut a map into maps above one another, each mixed as if it were alone.
    """

    space_ndim = 1
    gathers_documents = True
    dynamics = ("A_logs", "Ds")
    residual_outputs = ("out_proj",)
    examples = ({"d_state": 4}, {"d_state": 1, "ssm_ratio": 1.0, "gate": False, "routes": ("snake", "reverse(col)")})

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        ssm_ratio: float = 2.0,
        dt_rank: int | Literal["auto"] = "auto",
        d_conv: int = 3,
        conv_bias: bool = True,
        gate: bool = True,
        routes: tuple[str | Route, ...] = CROSS,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        dropout: float = 0.0,
        bias: bool = False,
    ) -> None:
        super().__init__()
        if d_model < 1 or d_state < 1 or d_conv < 1 or not routes:
            raise ValueError(
                f"d_model, d_state and d_conv must be positive and routes not empty; got {d_model}, {d_state}, {d_conv}, {routes}"
            )
        self.routes = tuple(parse_route(route) for route in routes)
        self.d_model, self.d_state, self.d_inner, self.gate = d_model, d_state, int(ssm_ratio * d_model), gate
        self.dt_rank = math.ceil(d_model / 16) if dt_rank == "auto" else dt_rank
        k, e = len(self.routes), self.d_inner
        self.in_proj = Linear(d_model, (1 + gate) * e, bias=bias)
        self.conv2d = DepthwiseConv2d(e, d_conv, bias=conv_bias) if d_conv > 1 else nn.Identity()
        self.x_proj = GroupedLinear(k, e, self.dt_rank + 2 * d_state, bias=False)
        self.dt_projs = GroupedLinear(k, self.dt_rank, e)
        nn.init.uniform_(self.dt_projs.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        self.dt_projs.bias = nn.Parameter(init_delta_bias((k, e), dt_min, dt_max, dt_init_floor))
        self.A_logs = nn.Parameter(torch.arange(1, d_state + 1, dtype=torch.float32).log().repeat(k * e, 1))
        self.Ds = nn.Parameter(torch.ones(k * e))
        self.out_norm = nn.LayerNorm(e)
        self.out_proj = Linear(e, d_model, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, timeline: Timeline | None = None, *, bus: Bus | None = None) -> Tensor:
        if x.ndim != 4 or x.shape[-1] != self.d_model:
            raise ValueError(f"SS2D expects maps (batch, height, width, {self.d_model}), channels last; got {tuple(x.shape)}")
        if timeline is None or timeline.without_interval("SS2D").plain:
            u, z = self.enter(x)
            return self.finish(self.core(u), z)
        return timeline._replace(interval=None).apart(lambda maps, _: self(maps), x)

    def enter(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """What is scanned, (B, H, W, E), and the gate."""
        x, z = self.in_proj(x).chunk(2, dim=-1) if self.gate else (self.in_proj(x), None)
        return F.silu(self.conv2d(x)), z

    def core(self, u: Tensor) -> Tensor:
        """Scan along every route and sum: (B, H, W, E) -> (B, H, W, E)."""
        tables = prepare(self.routes, u.shape[1:3], u.device)
        return merge(self.recur(*self.select(u, tables), u.shape[1:3]), tables, u.shape[1:3])

    def select(self, u: Tensor, tables: Tables) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What enters the scan, route by route: x and delta_raw (B, L, K E), B and C (B, L, K, N)."""
        # A projection that looks at single cells may come before the reordering: one matrix product, and fewer numbers to move.
        chosen = reorder(self.x_proj(u.unsqueeze(-2)), tables)
        r, B, C = chosen.split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        return split(u, tables).flatten(2), self.dt_projs(r).flatten(2), B, C

    def recur(self, x: Tensor, delta_raw: Tensor, B: Tensor, C: Tensor, space: torch.Size) -> Tensor:
        """The scans, (B, L, K, E): one over K E channels, or one a route where routes begin anew at places of their own."""
        A = -torch.exp(self.A_logs)
        e = self.d_inner
        lines = timelines(self.routes, space, x.device)
        if all(line is None for line in lines):
            y = selective_scan(x, delta_raw, A, B, C, self.Ds, delta_softplus=True)
        else:
            ys = []
            for k, line in enumerate(lines):
                own = slice(k * e, (k + 1) * e)
                inputs = (x[..., own], delta_raw[..., own], A[own], B[:, :, k], C[:, :, k], self.Ds[own])
                ys.append(selective_scan(*inputs, delta_softplus=True, timeline=line))
            y = torch.cat(ys, dim=-1)  # type: ignore[arg-type]
        return y.unflatten(-1, (-1, e))  # type: ignore[union-attr]

    def finish(self, y: Tensor, z: Tensor | None) -> Tensor:
        """From the sum over routes back to the width."""
        y = self.out_norm(y)
        return self.dropout(self.out_proj(y if z is None else y * F.silu(z)))

    def extra_repr(self) -> str:
        return f"routes=({', '.join(map(str, self.routes))})"
