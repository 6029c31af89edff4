"""What the ``cases.py`` of the scans share: a named case, and drawing its arguments."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from statescan.timeline import Timeline


class Case(NamedTuple):
    """Sizes by letter, and which optional arguments are given (the op's ``make`` says what each word means)."""

    name: str
    sizes: dict[str, int]
    options: tuple[str, ...] = ()


class Draw:
    """Random arguments of one case: the same values, rounded, for every dtype.

    Inputs of a position come in ``dtype``; parameters and states in float32, or in float64 where that is the dtype. Where a position does
    not exist, its inputs are NaN.
    """

    def __init__(self, case: Case, dtype: torch.dtype, device: torch.device | str, seed: int) -> None:
        self.case, self.dtype, self.device = case, dtype, device
        self.wide = torch.float64 if dtype in (torch.float64, torch.complex128) else torch.float32
        self.generator = torch.Generator().manual_seed(seed)
        batch, length = case.sizes["B"], case.sizes["L"]
        reset, mask = None, None
        interval: Tensor | float | None = None
        if "reset" in case.options:
            reset = torch.rand(batch, length, generator=self.generator) < 0.2
        if "mask" in case.options:
            mask = torch.rand(batch, length, generator=self.generator) < 0.7
            mask[2:3] = False  # a row of which nothing exists
        if "interval" in case.options:
            interval = 0.3 + 2 * torch.rand(batch, length, generator=self.generator, dtype=torch.float64)
        if "constant_interval" in case.options:
            interval = 0.7
        self.mask = mask
        self.timeline = Timeline(
            None if reset is None else reset.to(device),
            None if mask is None else mask.to(device),
            self._poison(interval).to(device, self.wide) if isinstance(interval, Tensor) else interval,
        )

    def __contains__(self, option: str) -> bool:
        return option in self.case.options

    def normal(self, *shape: int) -> Tensor:
        """Inputs of positions, (B, L, ...)."""
        return self._finish(torch.randn(shape, generator=self.generator, dtype=torch.float64))

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Inputs of positions, (B, L, ...), between two bounds."""
        return self._finish(low + (high - low) * torch.rand(shape, generator=self.generator, dtype=torch.float64))

    def parameter(self, *shape: int, scale: float = 1.0) -> Tensor:
        """A parameter or a state."""
        return (scale * torch.randn(shape, generator=self.generator, dtype=torch.float64)).to(self.device, self.wide)

    def negative(self, *shape: int) -> Tensor:
        """A parameter between -2.1 and -0.1."""
        return (-0.1 - 2 * torch.rand(shape, generator=self.generator, dtype=torch.float64)).to(self.device, self.wide)

    def _finish(self, tensor: Tensor) -> Tensor:
        return self._poison(tensor).to(self.device, self.dtype)

    def _poison(self, tensor: Tensor) -> Tensor:
        if self.mask is None:
            return tensor
        return torch.where(self.mask.reshape(*self.mask.shape, *(1,) * (tensor.ndim - 2)), tensor, float("nan"))
