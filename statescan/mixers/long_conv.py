"""Convolutions whose kernel is a parameter: as long as the training sequences, and no longer.

Paper: Fu et al., "Simple Hardware-Efficient Long Convolutions for Sequence Modeling", 2023, https://arxiv.org/abs/2302.06646.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan.mixers.gla import zeros_for
from statescan.mixers.lti import Activation, FinalAct, Readout
from statescan.ops.checks import check_positive, check_shape, state_dtype
from statescan.ops.fft_conv import fft_conv
from statescan.parameters import Dynamic
from statescan.protocols import Bus, CausalMixer, State
from statescan.registry import register
from statescan.state import state as declare_state
from statescan.timeline import Timeline, hide

KernelInit = Literal["random", "double_exp"]

DEAD = 1e-3
"""A kernel of which no larger share is expected to survive the threshold is refused: where it is zero it has no gradient."""


@declare_state
class WindowState(NamedTuple):
    """Float32."""

    inputs: Tensor
    """(B, K-1, D): the last existing inputs since the last reset, oldest first; zeros where there were none."""


class LongKernel(Readout):
    """What layers with a kernel of K taps share: C kernels a channel, a skip each, and a mixing of the channels::

        y[c] = k[c] * u + D[c] u,   out = glu(out_proj(dropout(activation([y[0], ..., y[C-1]]))))

    A subclass defines :meth:`taps`. Resets and masks go through ``Timeline.apart``; the layer has no notion of time.
    """

    gathers_documents = True
    directions: ClassVar[int] = 1

    def __init__(self, d_model: int, l_max: int, channels: int, activation: Activation, final_act: FinalAct, dropout: float) -> None:
        super().__init__(d_model, channels, activation, final_act, dropout)
        check_positive(l_max=l_max)
        self.l_max = l_max

    @abstractmethod
    def taps(self) -> Tensor:
        """(directions, C D, K): of the present and past, the present first, and of the future, the next position first."""

    def mix(self, y: Tensor, x: Tensor, line: Timeline | None) -> Tensor:
        """Skip and everything behind it."""
        return hide(self.finish(self.skip(y, x).to(x.dtype)), line)


class WindowedConv(LongKernel, CausalMixer):
    """A causal convolution of K taps. It has no recurrence: its state is the window of the last K-1 inputs, and a step costs K."""

    def __init__(self, d_model: int, l_max: int, channels: int, activation: Activation, final_act: FinalAct, dropout: float) -> None:
        super().__init__(d_model, l_max, channels, activation, final_act, dropout)
        self.memory = l_max - 1

    def kernel(self, length: int) -> Tensor:
        """(C D, length): zeros beyond l_max."""
        k = self.taps()[0]
        return F.pad(k, (0, max(0, length - self.l_max)))[:, :length]

    def forward(
        self,
        x: Tensor,
        timeline: Timeline | None = None,
        *,
        state: WindowState | None = None,
        return_state: bool = False,
        bus: Bus | None = None,
    ) -> Any:
        check_shape("x", x, ("B", "L", self.d_model))
        line = Timeline() if timeline is None else timeline.without_interval(type(self).__name__).expand(x.shape[0], x.shape[1])
        u = hide(x, line)
        before = 0 if state is None else self.l_max - 1
        history = u.to(state_dtype(x)) if state is None else torch.cat([self._window(state, x), u.to(state_dtype(x))], 1)
        k = self.taps()[0].to(history.dtype)

        def convolve(rows: Tensor, _: Timeline | None) -> Tensor:
            return fft_conv(self.copied(rows), k)

        y = convolve(history, None) if line.plain else self._joined(line, before).apart(convolve, history)
        y = self.mix(y[:, before:], u, line)
        return (y, WindowState(self._after(history, line, before))) if return_state else y

    def step(self, x: Tensor, state: State, timeline: Timeline | None = None, bus: Bus | None = None) -> tuple[Tensor, WindowState]:
        """x (B, D); the taps once: O(K)."""
        check_shape("x", x, ("B", self.d_model))
        line = Timeline() if timeline is None else timeline.without_interval(type(self).__name__)
        u = x if line.mask is None else torch.where(line.mask.unsqueeze(-1), x, 0)
        window = self._window(state, x)
        if line.reset is not None:
            window = torch.where(line.reset.view(-1, 1, 1), 0, window)
        history = torch.cat([window, u.to(window.dtype).unsqueeze(1)], 1)
        y = torch.einsum("bkd,cdk->bcd", history, self.taps()[0].unflatten(0, (self.channels, -1)).flip(-1).to(history.dtype)).flatten(1)
        out = self.mix(y.unsqueeze(1), u.unsqueeze(1), None if line.mask is None else Timeline(mask=line.mask.unsqueeze(1))).squeeze(1)
        after = history[:, 1:]
        return out, WindowState(after if line.mask is None else torch.where(line.mask.view(-1, 1, 1), after, window))

    def init_state(
        self,
        batch_size: int,
        *,
        space: Sequence[int] = (),
        capacity: int | None = None,
        context: Any = None,
        device: torch.device | str | None = None,
    ) -> WindowState:
        """Zeros."""
        return WindowState(zeros_for(self.D, device, batch_size, self.l_max - 1, self.d_model))

    def _window(self, state: State, x: Tensor) -> Tensor:
        if not isinstance(state, WindowState):
            raise ValueError(f"expected a WindowState; got a {type(state).__name__}: is it the state of another layer?")
        check_shape("state.inputs", state.inputs, (x.shape[0], self.l_max - 1, self.d_model))
        return state.inputs.to(state_dtype(x))

    def _joined(self, line: Timeline, before: int) -> Timeline:
        """The timeline of the window, all of which exists, and what follows."""

        def join(field: Tensor | None, value: bool) -> Tensor | None:
            return None if field is None else F.pad(field, (before, 0), value=value)

        return Timeline(join(line.reset, False), join(line.mask, True))

    def _after(self, history: Tensor, line: Timeline, before: int) -> Tensor:
        """The last K-1 inputs that exist and follow the last reset, with zeros in front."""
        wanted = self.l_max - 1
        if line.plain:
            return F.pad(history, (0, 0, wanted, 0))[:, history.shape[1] :]
        joined = self._joined(line, before)
        alive = torch.ones(history.shape[:2], dtype=torch.bool, device=history.device) if joined.mask is None else joined.mask
        if joined.reset is not None:
            segments = joined.segments()
            alive = alive & (segments == segments[:, -1:])
        history, alive = F.pad(history, (0, 0, wanted, 0)), F.pad(alive, (wanted, 0))
        order = alive.to(torch.uint8).argsort(dim=1, stable=True)[:, alive.shape[1] - wanted :]
        kept = history.gather(1, order.unsqueeze(-1).expand(-1, -1, history.shape[2]))
        return torch.where(alive.gather(1, order).unsqueeze(-1), kept, 0)


class TwoSidedConv(LongKernel):
    """The same with a kernel of the past and present and one of the future, which starts at the next position."""

    directions = 2

    def forward(self, x: Tensor, timeline: Timeline | None = None, *, bus: Bus | None = None) -> Tensor:
        check_shape("x", x, ("B", "L", self.d_model))
        line = Timeline() if timeline is None else timeline.without_interval(type(self).__name__).expand(x.shape[0], x.shape[1])
        u = hide(x, line)
        k, back = self.taps().to(state_dtype(x))

        def convolve(rows: Tensor, _: Timeline | None) -> Tensor:
            return fft_conv(self.copied(rows), k, back)

        rows = u.to(k.dtype)
        return self.mix(convolve(rows, None) if line.plain else line.apart(convolve, rows), u, line)


class FreeKernel(Dynamic):
    """Kernels whose every tap is a parameter, made smooth and sparse: k = dropout(squash(smooth(kernel))).

    squash(k) = sign(k) max(|k| - lam, 0), the proximal operator of lam |k|_1; smooth is the mean over a window of taps.
    """

    dynamics = ("kernel",)

    def __init__(
        self, width: int, taps: int, channels: int, init: KernelInit, lam: float, dropout: float, smooth: int | None, lr: float
    ) -> None:
        super().__init__()
        if smooth is not None and (smooth < 1 or smooth % 2 == 0):
            raise ValueError(f"smooth is the odd width of a window; got {smooth}")
        if not (lam >= 0 and 0 <= dropout < 1 and lr > 0):
            raise ValueError(
                f"lam must not be negative, kernel_dropout lie in [0, 1) and kernel_lr be positive; got {lam}, {dropout}, {lr}"
            )
        self.lam, self.dropout, self.smooth = lam, dropout, smooth
        self.learning_rates = {"kernel": lr}
        scale = _scale(init, width, taps)
        if lam > 0:
            alive = float(torch.special.erfc(lam / (scale * math.sqrt(2))).mean())
            if alive < DEAD:
                raise ValueError(
                    f"the threshold lam={lam} would leave {alive:.1g} of the initial kernel, and a kernel of zeros gets no gradient: take "
                    f"lam near its deviation, at most {float(scale.max()):g}, or below"
                )
        self.kernel = nn.Parameter(torch.randn(channels * width, taps) * scale.repeat(channels, 1).to(torch.get_default_device()))

    def forward(self) -> Tensor:
        """(W, K)"""
        k: Tensor = self.kernel
        if self.smooth is not None:
            k = F.avg_pool1d(k, self.smooth, 1, self.smooth // 2)
        return F.dropout(F.softshrink(k, self.lam), self.dropout, self.training)


def _scale(init: KernelInit, width: int, taps: int) -> Tensor:
    """Deviation of each initial tap, (W, K), float32."""
    if init == "random":
        return torch.full((width, taps), 0.002, device="cpu")
    if init != "double_exp":
        raise ValueError(f"init must be random or double_exp; got {init!r}")
    channel = torch.arange(width, device="cpu").unsqueeze(1)
    return 0.02 * torch.exp(-(torch.arange(taps, device="cpu") / taps) * (width / 2) ** (channel / width))


@register
class LongConv(WindowedConv):
    """A free kernel of l_max taps a channel, and C of them side by side, as in :class:`LongKernel`::

        k = dropout(squash(smooth(kernel))),   squash(k) = sign(k) max(|k| - lam, 0)

    The kernel knows nothing beyond ``l_max``, and there is no recurrence: streaming keeps a window of l_max - 1 inputs, and a step costs
    l_max products a channel.

    Args:
        d_model: width D.
        l_max: taps, K.
        channels: kernels a channel, C.
        lam: threshold of the taps; above some deviations of the initial kernel nothing would be left of it, which is refused.
        kernel_dropout: of taps.
        smooth: width of the moving average along the taps, odd; None is none.
        init: deviation of the initial taps: ``random`` 0.002; ``double_exp`` 0.02 exp(-(j / K) (D / 2)^(i / D)) at tap j of channel i.
        kernel_lr: the rate that the kernel does not exceed.
        activation: behind the convolution.
        final_act: ``glu`` doubles out_proj and gates one half by the other; ``none`` does not.
        dropout: before out_proj, of whole channels.

    Shapes: (B, L, D) -> (B, L, D), of any L. State: :class:`WindowState`.
    """

    examples = ({"l_max": 9}, {"l_max": 4, "channels": 2, "smooth": 3, "lam": 0.001, "init": "double_exp"})

    def __init__(
        self,
        d_model: int,
        l_max: int = 1024,
        channels: int = 1,
        *,
        lam: float = 0.003,
        kernel_dropout: float = 0.2,
        smooth: int | None = None,
        init: KernelInit = "random",
        kernel_lr: float = 1e-3,
        activation: Activation = "gelu",
        final_act: FinalAct = "glu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__(d_model, l_max, channels, activation, final_act, dropout)
        self.filter = FreeKernel(d_model, l_max, channels, init, lam, kernel_dropout, smooth, kernel_lr)

    def taps(self) -> Tensor:
        return self.filter().unsqueeze(0)


@register
class BidirectionalLongConv(TwoSidedConv):
    """:class:`LongConv` around every position: 2 l_max taps on a circle, those of the past first, those of the future last and backwards.

    At L = l_max it is the circular convolution of length 2 L of the authors' classifiers. The arguments are those of
    :class:`LongConv`; no state.
    """

    examples = ({"l_max": 9, "channels": 2},)

    def __init__(
        self,
        d_model: int,
        l_max: int = 1024,
        channels: int = 1,
        *,
        lam: float = 0.003,
        kernel_dropout: float = 0.2,
        smooth: int | None = None,
        init: KernelInit = "random",
        kernel_lr: float = 1e-3,
        activation: Activation = "gelu",
        final_act: FinalAct = "glu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__(d_model, l_max, channels, activation, final_act, dropout)
        self.filter = FreeKernel(d_model, 2 * l_max, channels, init, lam, kernel_dropout, smooth, kernel_lr)

    def taps(self) -> Tensor:
        k = self.filter()
        return torch.stack([k[:, : self.l_max], k[:, self.l_max :].flip(-1)])
