"""The products of prompts equal exact ones, and touch only what they may."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import statescan as ss
from statescan.layers import prompt_products


@pytest.fixture(autouse=True)
def old_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were no bfloat16 instructions; with a tile that does not divide the outputs."""
    monkeypatch.setattr(prompt_products, "widening", lambda: True)
    monkeypatch.setattr(prompt_products, "TILE", 5)


def bf16(*shape: int) -> torch.Tensor:
    return torch.randn(*shape).bfloat16()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(4, 9), (2, 3, 9), (1, 7, 9)])
def test_equals_the_exact_product_rounded_once(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    x, weight, b = bf16(*shape), bf16(13, 9), bf16(13) if bias else None
    exact = F.linear(x.double(), weight.double(), None if b is None else b.double())
    got = prompt_products.widened(x, weight, b)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), exact, rtol=2**-8, atol=1e-6)


def test_what_is_widened(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, ...]] = []
    monkeypatch.setattr(prompt_products, "widened", lambda x, w, b=None: (calls.append(tuple(x.shape)), F.linear(x, w, b))[1])
    x, weight = bf16(6, 9), bf16(13, 9)
    trained = bf16(13, 9).requires_grad_()

    def run(*arguments: Any) -> bool:
        calls.clear()
        with prompt_products.PromptProducts():
            F.linear(*arguments)
        return bool(calls)

    assert run(x, weight)
    assert run(x, weight, bf16(13))
    assert not run(x[:3], weight)  # few rows: the engine's
    assert not run(x.float(), weight.float())
    assert not run(x, trained)
    with torch.no_grad():
        assert run(x, trained)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not run(x, weight)


@pytest.mark.parametrize("name", ["mamba-tiny", "mamba2-tiny"])
def test_a_bfloat16_prompt(name: str) -> None:
    """Engine and generate read a prompt with widened products; hooks act."""
    torch.manual_seed(0)
    model = ss.create_model(name).eval().to(torch.bfloat16)
    exact = ss.create_model(name).eval()
    exact.load_state_dict({k: v.float() for k, v in model.state_dict().items()})
    seen: list[torch.dtype] = []
    model.backbone.layers[0].mixer.in_proj.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    ids = torch.randint(0, model.vocab_size, (2, 9))
    logits, _ = ss.Engine(model).scan(ids)
    with torch.no_grad():
        expected = exact(ids)
    assert float((logits - expected).norm() / expected.norm()) < 0.02
    prefix = ss.prefill(model, ids)
    assert float((prefix.logits - expected[:, -1]).norm() / expected[:, -1].norm()) < 0.02
    assert seen == [torch.bfloat16] * 2
    assert isinstance(prompt_products.products_of(model), prompt_products.PromptProducts)
    assert not isinstance(prompt_products.products_of(exact), prompt_products.PromptProducts)


def test_layers_of_other_kinds_are_left_alone() -> None:
    class Own(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return input @ self.weight.T

    layer = Own(9, 13, bias=False).bfloat16()
    with prompt_products.PromptProducts(), torch.no_grad():
        assert torch.equal(layer(bf16(6, 9).fill_(1)), (torch.ones(6, 9).bfloat16() @ layer.weight.T))
