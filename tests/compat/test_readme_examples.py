"""The examples of mamba_ssm's README, in its order, with the import and the device changed. The expected outcomes are its asserts."""

from __future__ import annotations

import pytest
import torch


def test_mamba_and_then_mamba2() -> None:
    from statescan.compat.mamba_ssm import Mamba

    batch, length, dim = 2, 64, 16
    x = torch.randn(batch, length, dim).to("cpu")
    model = Mamba(d_model=dim, d_state=16, d_conv=4, expand=2).to("cpu")
    y = model(x)
    assert y.shape == x.shape

    from statescan.compat.mamba_ssm import Mamba2

    # The original stops here: its head size of 64 does not divide the inner width of 32. Here a legal one is chosen, and said.
    with pytest.warns(UserWarning, match="headdim=64 does not divide the inner width 32: using headdim=32"):
        model = Mamba2(d_model=dim, d_state=64, d_conv=4, expand=2).to("cpu")
    y = model(x)
    assert y.shape == x.shape
    y.sum().backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters())


def test_a_legal_size_says_nothing(recwarn: pytest.WarningsRecorder) -> None:
    from statescan.compat.mamba_ssm import Mamba2

    assert Mamba2(d_model=32, d_state=8).headdim == 64
    assert not recwarn.list
    with pytest.raises(ValueError, match="headdim must divide the inner width 32; got 24"):
        Mamba2(d_model=16, headdim=24)
