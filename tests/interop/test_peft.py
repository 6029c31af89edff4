"""LoRA on every projection takes effect: gradient in each wrapped module, merged equals unmerged, on whole sequences and on steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import statescan as ss
from statescan.interop.adapters import lora_targets
from statescan.ops import products

peft = pytest.importorskip("peft")

TARGETS = {"mamba-tiny": ["dt_proj", "in_proj", "out_proj", "x_proj"], "mamba2-tiny": ["in_proj", "out_proj"]}


@pytest.fixture(autouse=True)
def one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose product it is, and so its rounding, depends on what needs a gradient: adapters change that, and nothing else may differ."""
    monkeypatch.setattr(products, "ours_is_faster", lambda: False)
    monkeypatch.setattr(products, "few_is_faster", lambda: False)


def adapt(model: nn.Module, *, fresh: bool = False) -> Any:
    """Wrap every projection; unless ``fresh``, with adapters that are not zero."""
    torch.manual_seed(1)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=3, lora_alpha=6, target_modules=lora_targets(model)))
    if not fresh:
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if "lora_" in name:
                    parameter.normal_(std=0.1)
    return wrapped


def ids(length: int = 9, rows: int = 2) -> Tensor:
    return torch.randint(0, 61, (rows, length), generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=TARGETS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(name: str) -> Any:
    return make(name)


def make(name: str) -> Any:
    """Weights large enough that every projection matters."""
    torch.manual_seed(0)
    model = ss.create_model(name)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.3)
    return model


def test_targets(name: str, model: Any) -> None:
    assert lora_targets(model) == TARGETS[name]
    with pytest.raises(ValueError, match="no mixer with a projection"):
        lora_targets(nn.Linear(2, 2))


def test_every_wrapped_module_receives_gradient(name: str, model: Any) -> None:
    wrapped = adapt(model)
    model.loss(wrapped(ids()), ids()).backward()
    adapters = {n: p for n, p in wrapped.named_parameters() if p.requires_grad}
    assert len(adapters) == 2 * 2 * len(TARGETS[name])  # A and B, two layers
    for parameter_name, parameter in adapters.items():
        assert parameter.grad is not None, parameter_name
        assert float(parameter.grad.abs().max()) > 0, parameter_name


def test_an_adapter_on_one_projection_changes_the_output_on_every_path(name: str, model: Any) -> None:
    plain = model.eval()
    rows = ids()
    with torch.no_grad():
        whole, state = plain.scan(rows)
        step, _ = plain.step(rows[:, 0], state)
    for target in TARGETS[name]:
        other = make(name).eval()
        wrapped = peft.get_peft_model(other, peft.LoraConfig(r=2, target_modules=[target], init_lora_weights=False))
        with torch.no_grad():
            assert float((wrapped(rows) - whole).abs().max()) > 1e-3, target
            # From the plain model's state, so that only the step itself can differ.
            assert float((other.step(rows[:, 0], state)[0] - step).abs().max()) > 1e-3, target


def test_a_fresh_adapter_changes_nothing(model: Any) -> None:
    rows = ids()
    expected = model.eval()(rows)
    torch.testing.assert_close(adapt(model, fresh=True)(rows), expected, atol=1e-6, rtol=0)


def test_merged_equals_unmerged(model: Any) -> None:
    rows = ids()
    wrapped = adapt(model.eval())
    with torch.no_grad():
        expected, state = model.scan(rows)
        step, _ = model.step(rows[:, 0], state)
        merged = wrapped.merge_and_unload()
        assert not any("lora" in n for n, _ in merged.named_modules())
        torch.testing.assert_close(merged(rows), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(merged.step(rows[:, 0], state)[0], step, atol=1e-5, rtol=0)


def test_adapters_under_the_transformers_bridge(name: str, model: Any, tmp_path: Any) -> None:
    """``task_type`` makes PEFT use generate and the loss; what it saves loads on a fresh model."""
    pytest.importorskip("transformers")
    from statescan.interop import transformers_bridge as bridge

    config = peft.LoraConfig(r=3, task_type="CAUSAL_LM", target_modules=lora_targets(model), init_lora_weights=False)
    torch.manual_seed(2)
    wrapped = peft.get_peft_model(bridge.wrap(model), config).eval()
    rows = ids()
    output = wrapped(input_ids=rows, labels=rows)
    output.loss.backward()
    adapters = [p for p in wrapped.parameters() if p.requires_grad]
    assert len(adapters) == 2 * 2 * len(TARGETS[name])
    assert all(float(p.grad.abs().max()) > 0 for p in adapters)
    tokens = wrapped.generate(input_ids=rows, max_new_tokens=4, do_sample=False)
    wrapped.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(bridge.wrap(make(name)), tmp_path).eval()
    torch.testing.assert_close(again(input_ids=rows).logits, output.logits, atol=1e-6, rtol=0)
    assert again.generate(input_ids=rows, max_new_tokens=4, do_sample=False).tolist() == tokens.tolist()
