"""A long convolution whose Fourier transforms are learned too.

Paper: Fu et al., "Simple Hardware-Efficient Long Convolutions for Sequence Modeling", 2023, https://arxiv.org/abs/2302.06646.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan.mixers.long_conv import FreeKernel, KernelInit, LongKernel
from statescan.mixers.lti import Activation, FinalAct
from statescan.ops.checks import check_positive, check_shape, state_dtype
from statescan.ops.fft_conv.blocks import block_fft, dft_matrix, matrix_sizes
from statescan.ops.opaque import opaque
from statescan.parameters import Dynamic
from statescan.protocols import Bus
from statescan.registry import register
from statescan.timeline import Timeline, hide


def _transform(x: Tensor, length: int, first: Tensor, second: Tensor | None, additive: bool) -> Tensor:
    stored = {matrix.shape[1]: matrix for matrix in (first, second) if matrix is not None}

    def matrix(n: int, x: Tensor) -> Tensor:
        learned = torch.view_as_complex(stored[n].to(x.real.dtype).contiguous())
        return dft_matrix(n, x) + learned if additive else learned

    kind = torch.complex128 if x.dtype == torch.float64 else torch.complex64
    return block_fft(F.pad(x, (0, length - x.shape[-1])).to(kind), matrix)


def _convolve(u: Tensor, k: Tensor, first: Tensor, second: Tensor | None, size: int, additive: bool) -> tuple[Tensor]:
    """u (B, W, L) in blocks of ``size`` positions, k (W, N, 2): what the blocks say, added up, (B, W, L)."""
    blocks = F.pad(u, (0, -u.shape[2] % size)).unflatten(2, (-1, size)).transpose(1, 2)
    product = _transform(blocks, k.shape[1], first, second, additive) * torch.view_as_complex(k)
    here, beyond = torch.fft.ifft(product).real[..., : 2 * size].chunk(2, -1)
    y = here + F.pad(beyond, (0, 0, 0, 0, 1, 0))[:, :-1]
    return (y.transpose(1, 2).flatten(2)[..., : u.shape[2]],)


_opaque = opaque(
    "butterfly_conv", _convolve, "Tensor u, Tensor k, Tensor first, Tensor? second, int size, bool additive", lambda u, *_: (u,), results=1
)


class Butterflies(Dynamic):
    """Two transforms of N points by :func:`block_fft`, whose matrices are parameters: (heads, n, n, 2) for every size n in it, one or two.

    ``noise`` None: they start as those of the Fourier transform. Else they are what is added to those, normal with that deviation.
    """

    def __init__(self, length: int, size: int, heads: int, noise: float | None, lr: float) -> None:
        super().__init__()
        self.length, self.size, self.additive = length, size, noise is not None
        self.sizes = tuple(dict.fromkeys(matrix_sizes(length)))
        for role in ("input", "kernel"):
            for n in self.sizes:
                exact = torch.view_as_real(dft_matrix(n, torch.empty(0, dtype=torch.complex64, device=torch.get_default_device())))
                start = exact.repeat(heads, 1, 1, 1) if noise is None else noise * torch.randn(heads, n, n, 2)
                setattr(self, f"{role}_{n}", nn.Parameter(start))
        self.dynamics = tuple(f"{role}_{n}" for role in ("input", "kernel") for n in self.sizes)  # type: ignore[misc]
        self.learning_rates = dict.fromkeys(self.dynamics, lr)

    def matrices(self, role: str) -> tuple[Tensor, Tensor | None]:
        """Those of one transform."""
        first, *others = (getattr(self, f"{role}_{n}") for n in self.sizes)
        return first, others[0] if others else None

    def forward(self, u: Tensor, k: Tensor) -> Tensor:
        """u (B, heads or W, L) and k (W, K), K at most ``size`` -> (B, W, L)."""
        spectrum = torch.view_as_real(_transform(k, self.length, *self.matrices("kernel"), self.additive))
        given = (u, spectrum, *self.matrices("input"), self.size, self.additive)
        y: Tensor = _opaque(*given) if torch.compiler.is_compiling() else _convolve(*given)[0]
        return y


@register
class ButterflyConv(LongKernel):
    """:class:`LongConv` between two learned transforms F_u and F_k and the exact inverse one::

        y = Re ifft(F_u(u) F_k(k)) + D u,   k = dropout(squash(smooth(kernel)))

    Both are transforms of N points, the least power of two from 2 l_max on, made of matrices with at most 16 rows, which are parameters.
    They start as Fourier's (or near by), where this is LongConv. What they become need not be a convolution: the layer may look ahead, so
    it has no state. A longer sequence than l_max is cut into blocks of l_max positions, whose answers of twice that length add up.

    Args:
        d_model: width D.
        l_max: taps K, and positions in a block.
        channels: kernels a channel, C.
        own: every channel has transforms of its own.
        noise: None: the matrices themselves are learned; else what is added to Fourier's, with this deviation at first (0.01 in the paper's
            code).
        transform_lr: the rate that the matrices do not exceed.
        lam, kernel_dropout, smooth, init, kernel_lr, activation, final_act, dropout: see :class:`LongConv`.

    Shapes: (B, L, D) -> (B, L, D), of any L. Resets and masks go through ``Timeline.apart``.
    """

    examples = ({"l_max": 16}, {"l_max": 6, "channels": 2, "own": True, "noise": 0.01, "lam": 0.001})

    def __init__(
        self,
        d_model: int,
        l_max: int = 1024,
        channels: int = 1,
        *,
        own: bool = False,
        noise: float | None = None,
        transform_lr: float = 1e-3,
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
        check_positive(transform_lr=transform_lr)
        self.filter = FreeKernel(d_model, l_max, channels, init, lam, kernel_dropout, smooth, kernel_lr)
        length = 1 << (2 * l_max - 1).bit_length()
        heads = channels * d_model if own else 1
        self.transforms = Butterflies(length, l_max, heads, noise, transform_lr)

    def taps(self) -> Tensor:
        return self.filter().unsqueeze(0)

    def forward(self, x: Tensor, timeline: Timeline | None = None, *, bus: Bus | None = None) -> Tensor:
        check_shape("x", x, ("B", "L", self.d_model))
        line = Timeline() if timeline is None else timeline.without_interval(type(self).__name__).expand(x.shape[0], x.shape[1])
        u = hide(x, line)
        k = self.taps()[0].to(state_dtype(x))

        def convolve(rows: Tensor, _: Timeline | None) -> Tensor:
            y: Tensor = self.transforms(self.copied(rows).mT.contiguous(), k)
            return y.mT

        rows = u.to(state_dtype(x))
        return self.mix(convolve(rows, None) if line.plain else line.apart(convolve, rows), u, line)
