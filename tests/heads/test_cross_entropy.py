"""The loss equals torch's, in value and gradient, with half of the memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from statescan.heads import cross_entropy as module
from statescan.heads.cross_entropy import cross_entropy


@pytest.mark.parametrize("piece", [1, 40, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_equals_torch(dtype: torch.dtype, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module._PIECE, "cpu", piece)
    torch.manual_seed(0)
    logits = (3 * torch.randn(2, 7, 11, dtype=torch.float64)).to(dtype).requires_grad_()
    targets = torch.randint(0, 11, (2, 7))
    targets[0, 3], targets[1, 6] = -100, -1
    exact = logits.detach().double().requires_grad_()
    expected = F.cross_entropy(exact.flatten(0, 1), torch.where(targets < 0, -100, targets).flatten())
    (5 * expected).backward()
    loss = cross_entropy(logits, targets)
    (5 * loss).backward()
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 5e-3}[dtype]
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=max(tolerance, 1e-6) if dtype != torch.float64 else 1e-12, atol=0)
    assert logits.grad is not None
    assert exact.grad is not None
    assert logits.grad.dtype == dtype
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=tolerance, atol=tolerance)  # p - 1 cancels
    assert not logits.grad[0, 3].any()
    torch.testing.assert_close(cross_entropy(logits.detach(), targets), loss.detach())


def test_extreme_logits_and_nan() -> None:
    logits = torch.tensor([[1e30, -1e30, 0.0], [0.0, float("nan"), 0.0]], requires_grad=True)
    assert cross_entropy(logits[:1], torch.tensor([0])).item() == 0
    assert cross_entropy(logits, torch.tensor([0, 1])).isnan()
    assert cross_entropy(logits, torch.tensor([0, -100])).item() == 0
    assert cross_entropy(logits, torch.tensor([-100, -100])).isnan()


def test_keeps_only_the_logits() -> None:
    """Every tensor that the graph saves belongs to the logits or is a vector."""
    logits = torch.randn(64, 1000, requires_grad=True)
    made = logits * 1.0
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
        cross_entropy(made, torch.zeros(64, dtype=torch.long))
    others = [t for t in saved if t.untyped_storage().data_ptr() != made.untyped_storage().data_ptr()]
    assert saved
    assert max(t.numel() for t in others) <= 64
