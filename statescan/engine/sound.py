"""Sample by sample through a sound model on a CPU: every system discretised once, and few, cheap operators a sample.

The state lives in the decoder and is overwritten. A stage whose block is not complete is not touched: with blocks of four positions the
next coarser one runs for every fourth sample.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeGuard, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan.backbones import PoolUNet
from statescan.blocks import Residual
from statescan.heads.sound import SoundModel
from statescan.layers import MLP, Linear
from statescan.layers.linear import is_watched
from statescan.layers.norm import LayerNorm
from statescan.mixers import S4D
from statescan.mixers.pooled import Pooled
from statescan.mixers.s4 import S4, DenseSystem
from statescan.protocols import CausalMixer

M = TypeVar("M", bound=nn.Module)
Step = Callable[[Tensor], Tensor]
"""(B, D) -> (B, D), one position further."""


class SoundDecoder:
    """``decoder.step(levels)``: one sample of each row in, what the model says about the next one out.

    Made for one generation from a model in eval mode, with its weights as they are then. Rows stand at one place: they begin together.
    S4 and S4D layers, MLPs and norms are read; any other mixer is called through its own ``step``, and ``called`` names it. So is a module
    with hooks, a replaced forward or parametrisations.
    """

    def __init__(self, model: SoundModel, batch: int) -> None:
        if model.training:
            raise ValueError("the model is in training mode: call model.eval() first")
        self.model, self.batch = model, batch
        self.called: list[str] = []
        one_kind = {p.dtype for p in model.network.parameters() if p.is_floating_point()} in ({torch.float32}, {torch.float64})
        self._network = self._pooled(model.network) if _plain(model.network, PoolUNet) and one_kind else self._stepped(model.network)

    @torch.inference_mode()
    def step(self, levels: Tensor) -> Tensor:
        """Levels (B,) -> (B, levels or 3 K)."""
        return self.model.head(self.model.norm_f(self._network(self.model.embed(levels))))  # type: ignore[no-any-return]

    # -- the network --------------------------------------------------------------------------------------------------------

    def _pooled(self, net: PoolUNet) -> Step:
        down, up = ([self._block(block) for block in blocks] for blocks in (net.down, net.up))
        pooled = None if net.pooled is None else self._coarse(net.pooled)

        def step(x: Tensor) -> Tensor:
            streams = [x]
            for block in down:
                x = block(x)
                streams.append(x)
            if pooled is not None:
                coarse = pooled(x)
                x = streams.pop() + coarse
            entered = x
            for block in up:
                x = block(x)
                x = x + streams.pop() if down else x
            return x if down else x + entered

        return step

    def _coarse(self, pooled: Pooled) -> Step:
        """The pooled stage: what it gives to this position; it runs when a block is complete."""
        if not (_plain(pooled, Pooled) and _plain(pooled.down, Linear) and _plain(pooled.up, Linear)):
            return self._stepped(pooled)
        inner = self._pooled(pooled.inner) if _plain(pooled.inner, PoolUNet) else self._stepped(pooled.inner)
        size, width = pooled.pool, pooled.d_model
        # the two Linears are indexed channel by channel; here a block's positions lie one behind the other
        order = torch.arange(size * width).view(width, size).T.flatten()
        reads, reads_bias = pooled.down.weight[:, order].detach().T, pooled.down.bias.detach()
        gives, gives_bias = pooled.up.weight[order].detach().T, pooled.up.bias[order].detach()
        block, queue = reads.new_zeros(self.batch, size * width), reads.new_zeros(self.batch, size * width)
        places, given = block.split(width, 1), queue.split(width, 1)
        place = 0

        def step(x: Tensor) -> Tensor:
            nonlocal place
            at, place = place, (place + 1) % size
            places[at].copy_(x)
            if place:
                return given[at]
            last = given[at].clone()
            torch.addmm(gives_bias, inner(torch.addmm(reads_bias, block, reads)), gives, out=queue)
            return last

        return step

    def _block(self, block: nn.Module) -> Step:
        if not _plain(block, Residual) or block.scale != 1:
            return self._stepped(block)
        norm: Any = block.norm
        mixer: Any = block.mixer
        if _plain(mixer, MLP) and mixer.activation == "gelu":
            inner = _mlp(mixer)
        elif _plain(mixer, S4D) or (_plain(mixer, S4) and mixer.disc == "bilinear"):
            inner = self._modal(mixer)
        elif hasattr(mixer, "init_state"):
            inner = self._stepped(mixer)
        else:
            return self._stepped(block)
        if not _plain(norm, LayerNorm):
            return lambda x: x + inner(norm(x))
        shape, weight, bias, eps = norm.normalized_shape, norm.weight, norm.bias, norm.eps
        return lambda x: x + inner(torch.layer_norm(x, shape, weight, bias, eps))

    def _stepped(self, module: nn.Module) -> Step:
        """By the module's own step."""
        if not hasattr(module, "init_state"):
            raise ValueError(f"{type(module).__name__} has no init_state: it cannot go sample by sample")
        self.called.append(type(module).__name__)
        state = module.init_state(self.batch)  # type: ignore[operator]

        def step(x: Tensor) -> Tensor:
            nonlocal state
            if isinstance(module, CausalMixer) or hasattr(module, "step"):
                y, state = module.step(x, state)  # type: ignore[operator]
                return y  # type: ignore[no-any-return]
            y, state = module(x.unsqueeze(1), state=state)  # a block
            return y.squeeze(1)  # type: ignore[no-any-return]

        return step

    def _modal(self, mixer: S4 | S4D) -> Step:
        """x' = d x + b u - p r with r = Re(q . x), y = Re(c . x') + D u, then the mixing of the channels; three products a sample.

        The state is (D, B, N) real numbers, real and imaginary parts in turn. The next position's r is read together with y.
        """
        system = mixer.system()
        assert not isinstance(system, DenseSystem)
        kind = mixer.D.dtype
        if isinstance(mixer, S4):
            d, p, q, b, c = system  # type: ignore[misc]
            write, read = torch.stack([b, *(-p).unbind(1)], 1), torch.stack([c, *q.unbind(1)], 2)
        else:
            log_decay, b, c = system  # type: ignore[misc]
            d, write, read = log_decay.exp(), b.unsqueeze(1), c.unsqueeze(2)
        complex_kind = torch.complex128 if kind == torch.float64 else torch.complex64
        d = d.detach().to(complex_kind).unsqueeze(1)
        write = torch.view_as_real(write.detach().resolve_conj()).flatten(-2).to(kind)  # (D, 1 + R, N)
        # Re(q . x) is a product of real and imaginary parts with conj(q)
        read = torch.view_as_real(read.detach().conj().resolve_conj()).movedim(-1, -2).flatten(1, 2).to(kind).contiguous()
        width, inputs, n = write.shape
        state, given = write.new_zeros(width, self.batch, n), write.new_zeros(width, self.batch, inputs)
        turning, channels = torch.view_as_complex(state.view(width, self.batch, n // 2, 2)), given[..., 0].T
        skip, glu, activate, mix = mixer.D.detach(), mixer.final_act == "glu", _ACTIVATIONS[mixer.activation], _affine(mixer.out_proj)

        def step(u: Tensor) -> Tensor:
            channels.copy_(u)  # beside r, which stands there since the last position
            turning.mul_(d)
            state.baddbmm_(given, write)
            torch.bmm(state, read, out=given)  # y, and r of the next position
            y = mix(activate(torch.addcmul(channels, u, skip)))
            return F.glu(y, -1) if glu else y

        return step


_ACTIVATIONS: dict[str, Step] = {"gelu": F.gelu, "silu": F.silu, "relu": torch.relu, "none": lambda y: y}


def _affine(layer: nn.Module) -> Step:
    """A Linear as one product; anything else as it is."""
    if not _plain(layer, Linear) or layer.bias is None:
        return layer
    weight, bias = layer.weight.detach().T, layer.bias.detach()  # type: ignore[operator]
    return lambda x: torch.addmm(bias, x, weight)  # type: ignore[arg-type]


def _mlp(mixer: MLP) -> Step:
    up, down = _affine(mixer.up_proj), _affine(mixer.down_proj)
    return lambda x: down(F.gelu(up(x)))


def _plain(module: object, kind: type[M]) -> TypeGuard[M]:
    """Exactly of a type, and nothing watches or replaces its call."""
    return type(module) is kind and not is_watched(module)
