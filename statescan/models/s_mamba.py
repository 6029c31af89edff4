"""S-Mamba: a forecaster whose positions are the variates."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan.heads.windowed import WindowForecaster, mse_of_seen
from statescan.layers.linear import Linear
from statescan.mixers.bidirectional import Bidirectional
from statescan.mixers.mamba import Mamba
from statescan.parameters import parameter_groups
from statescan.registry import Family, register, register_model
from statescan.spec import Spec

FAMILY = Family(
    name="s-mamba",
    title="Is Mamba Effective for Time Series Forecasting?",
    url="https://arxiv.org/abs/2403.11144",
    bibtex="""@article{wang2024mamba,
  title={Is Mamba Effective for Time Series Forecasting?},
  author={Wang, Zihan and Kong, Fanheng and Feng, Shi and Wang, Ming and Yang, Xiaocui and Zhao, Han and Wang, Daling and Zhang, Yifei},
  journal={arXiv preprint arXiv:2403.11144},
  year={2024}
}""",
    exact="Layers, wiring, the order of norms, parameter counts of what is called.",
    deviates="The released objects own two more Mambas and an attention of width 11 in each layer, which they never call: absent here. "
    "A Mamba layer starts as in this library.",
)


class Encoder(nn.Module):
    """Both directions of a Mamba over the variates, then an MLP within each; norms behind."""

    def __init__(self, d_model: int, d_state: int, d_ff: int, dropout: float) -> None:
        super().__init__()
        self.mixer = Bidirectional(d_model, Spec(Mamba, d_state=d_state, d_conv=2, expand=1))
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.up, self.down = Linear(d_model, d_ff), Linear(d_ff, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, u: Tensor) -> Tensor:
        u = self.norm1(u + self.mixer(u))
        return self.norm2(u + self.dropout(self.down(self.dropout(F.gelu(self.up(u))))))


@register
class SMamba(WindowForecaster):
    """Each variate's whole past is one token; a Mamba in both directions mixes the variates, in the order they stand in::

        u = in_proj([past of each variate; past of each time mark])      (V + M tokens of width D)
        u = norm(u + ahead(u) + flip(behind(flip(u)))),  u = norm(u + MLP(u))      n_layers times
        forecast = out_proj(norm(u))                                     of the first V tokens

    With ``instance_norm`` each variate's past is brought to mean 0 and variance 1 before, and its forecast back after. No parameter
    depends on V.

    Args:
        length: positions of the past, L.
        horizon: positions of the forecast, H.
        d_model: width D.
        d_state: size N of the Mamba layers.
        n_layers: how many.
        d_ff: inner width of the MLPs; None is D.
        dropout: behind the embedding and in the MLPs.
        instance_norm: see above.

    Shapes: (B, L, V) -> (B, H, V); marks are (B, L, M). No state: it reads windows.
    """

    reads_windows: ClassVar[bool] = True
    """A window in, a result out: there is no position after which to stop, so the laws of sequences do not apply."""
    reads_across: ClassVar[bool] = True

    def __init__(
        self,
        length: int = 96,
        horizon: int = 96,
        d_model: int = 512,
        d_state: int = 32,
        n_layers: int = 2,
        d_ff: int | None = None,
        dropout: float = 0.1,
        instance_norm: bool = True,
    ) -> None:
        super().__init__()
        if min(length, horizon, n_layers) < 1:
            raise ValueError(f"length, horizon and n_layers must be positive; got {length}, {horizon} and {n_layers}")
        self.length, self.horizon, self.instance_norm = length, horizon, instance_norm
        self.in_proj = Linear(length, d_model)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(Encoder(d_model, d_state, d_model if d_ff is None else d_ff, dropout) for _ in range(n_layers))
        self.norm_f = nn.LayerNorm(d_model)
        self.out_proj = Linear(d_model, horizon)

    def forward(self, x: Tensor, marks: Tensor | None = None) -> Tensor:
        """The forecast."""
        for name, series in (("x", x), ("marks", marks)):
            if series is not None and (series.ndim != 3 or series.shape[1] != self.length):
                raise ValueError(f"{name} must have shape (batch, {self.length}, variates); got {tuple(series.shape)}")
        variates = x.shape[2]
        if self.instance_norm:
            mean = x.mean(1, keepdim=True).detach()
            spread = (x.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt().detach()
            x = (x - mean) / spread
        tokens = x if marks is None else torch.cat([x, marks.to(x.dtype)], 2)
        u = self.dropout(self.in_proj(tokens.mT))
        for layer in self.layers:
            u = layer(u)
        y = self.out_proj(self.norm_f(u)[:, :variates]).mT
        return y * spread + mean if self.instance_norm else y

    def forecast(self, x: Tensor, horizon: int) -> Tensor:
        """The first positions of the forecast."""
        if not 0 < horizon <= self.horizon:
            raise ValueError(f"horizon must lie in 1..{self.horizon}, what the model was built for; got {horizon}")
        forecast: Tensor = self(x)[:, :horizon]
        return forecast

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean squared error of the forecast of y (B, H, V) from x (B, L, V); NaN in y does not count."""
        return mse_of_seen(self.forecast(x, y.shape[1]), y)

    def parameter_groups(self, weight_decay: float = 0.0, lr: float | None = None) -> list[dict[str, Any]]:
        """Optimiser groups; the paper decays nothing."""
        return parameter_groups(self, weight_decay=weight_decay, lr=lr)


for _name, _count, _arguments in (
    ("etth1", 1_145_696, {"d_model": 256, "d_state": 2}),
    ("ettm1-192", 314_944, {"d_model": 128, "d_state": 2, "horizon": 192}),
    ("ecl", 6_760_032, {"n_layers": 3, "d_state": 16}),
    ("ecl-720", 7_227_600, {"n_layers": 3, "horizon": 720}),
    ("traffic", 9_176_672, {"n_layers": 4}),
    ("weather", 6_631_008, {"n_layers": 3, "d_state": 2}),
    ("solar", 4_638_304, {}),
    ("exchange", 348_640, {"d_model": 128}),
    ("pems04-12", 35_568_652, {"n_layers": 4, "d_model": 1024, "horizon": 12, "instance_norm": False}),
):
    register_model(f"s-mamba-{_name}", Spec(SMamba, **_arguments), family=FAMILY, parameters=_count)
