"""Learned butterflies: the transform by blocks, the convolution that they start as, and what they may become."""

from __future__ import annotations

import pytest
import torch

from statescan.mixers import ButterflyConv, LongConv
from statescan.ops.fft_conv.blocks import block_fft, dft_matrix, matrix_sizes
from statescan.parameters import parameter_groups


@pytest.mark.parametrize("length", [2, 8, 16, 32, 256, 2048])
@pytest.mark.parametrize("largest", [2, 4, 16])
def test_the_transform_by_blocks_is_the_transform(length: int, largest: int) -> None:
    x = torch.randn(2, 3, length, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    expected = torch.fft.fft(x)
    assert (block_fft(x, largest=largest) - expected).abs().max() < 1e-13 * expected.abs().max()
    single = block_fft(x.to(torch.complex64), largest=largest)
    assert (single - expected).abs().max() < 1e-6 * expected.abs().max()


def test_matrices_of_each_row_act_on_that_row() -> None:
    x = torch.randn(2, 3, 128, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    scale = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    found = block_fft(x, lambda n, like: scale[:, None, None] * dft_matrix(n, like))
    torch.testing.assert_close(found, torch.fft.fft(x) * scale[:, None] ** 2, atol=1e-11, rtol=0)  # 16 times 8: two matrices
    assert matrix_sizes(4096) == (16, 16, 16)
    assert matrix_sizes(64) == (16, 4)
    for length in (0, 1, 12):
        with pytest.raises(ValueError, match="powers of two"):
            matrix_sizes(length)


@pytest.mark.parametrize(("channels", "own", "noise"), [(1, False, None), (2, True, None), (2, False, 0.0)])
def test_it_starts_as_the_long_convolution(channels: int, own: bool, noise: float | None) -> None:
    torch.manual_seed(0)
    layer = ButterflyConv(3, 20, channels, own=own, noise=noise, lam=0.001).double().eval()
    plain = LongConv(3, 20, channels, lam=0.001).double().eval()
    plain.load_state_dict({name: value for name, value in layer.state_dict().items() if not name.startswith("transforms.")})
    for length in (1, 17, 20, 21, 40, 53):
        x = torch.randn(2, length, 3, dtype=torch.float64)
        # learned matrices are kept in float32, and those of the Fourier transform are exact in float64
        torch.testing.assert_close(layer(x), plain(x), atol=1e-7 if noise is None else 1e-14, rtol=0)


def test_learned_matrices_are_no_longer_causal_and_all_of_them_learn() -> None:
    torch.manual_seed(0)
    layer = ButterflyConv(3, 20, 2, own=True, noise=0.01, lam=0.0).double().eval()
    shapes = {name: tuple(p.shape) for name, p in layer.transforms.named_parameters()}
    assert shapes == {f"{role}_{n}": (6, n, n, 2) for role in ("input", "kernel") for n in (16, 4)}
    x = torch.randn(2, 17, 3, dtype=torch.float64)
    changed = torch.cat([x[:, :-1], -x[:, -1:]], 1)
    assert (layer(x) - layer(changed))[:, :-1].abs().max() > 1e-6
    layer(x).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
    names = {id(p): n for n, p in layer.named_parameters()}
    slow = {names[id(p)].partition(".")[0] for g in parameter_groups(layer, lr=1e-2) if g["lr"] == 1e-3 for p in g["params"]}
    assert slow == {"transforms", "filter"}
