"""The guard names the first layer at fault; evaluation does not depend on how the text is cut; groups reach the right optimiser."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan.data import ByteTokenizer, Document, encode_documents
from statescan.interop.pretrained import save_pretrained
from statescan.procedures.evaluate import evaluate, evaluate_corpus
from statescan.procedures.guard import first_non_finite
from statescan.procedures.optim import make_optimizer, set_rate
from statescan.spec import Spec
from tests.procedures.train_toys import MODEL


class Spoil(nn.Module):
    """Passes its input on, or something infinite; its gradient, or NaN."""

    def __init__(self, output: bool = False, gradient: bool = False) -> None:
        super().__init__()
        self.output, self.gradient = output, gradient
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.gradient and x.requires_grad:
            x.register_hook(lambda g: g * math.nan)
        return x * self.weight * (math.inf if self.output else 1)


def sequence(**spoil: bool) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 3), Spoil(), nn.Linear(3, 3), Spoil(**spoil), nn.Linear(3, 3))


def test_the_guard_names_a_parameter_an_output_a_gradient() -> None:
    x = torch.randn(2, 3)
    model = sequence()
    with torch.no_grad():
        model[2].bias[1] = math.nan
    assert first_non_finite(model, lambda: model(x)) == "the parameter 2.bias is NaN in 1 of 3 places"

    model = sequence(output=True)
    assert first_non_finite(model, lambda: model(x)).startswith("the output of 3 (Spoil) is infinite in 6 of 6 places")

    model = sequence(gradient=True)
    model(x).sum().backward()
    found = first_non_finite(model, lambda: model(x))
    assert found.startswith("the gradient of 2."), "the layer before the one that spoils the way back"

    model = sequence()
    model(x).sum().backward()
    assert "is finite" in first_non_finite(model, lambda: model(x))
    assert not model[0]._forward_hooks


HYBRID = MODEL.override({"layers": "MA", "parts": {**MODEL.arguments["parts"], "A": Spec("Attention", num_heads=2)}})
"""Its cache grows, and loses what documents that have ended left in it."""


@pytest.mark.parametrize("spec", [MODEL, HYBRID], ids=["mamba2", "hybrid"])
def test_evaluation_equals_each_document_alone(spec: Spec[Any]) -> None:
    model = spec().double()
    texts = ["def f(x):\n", "a", "some more text, longer than the others\n" * 3, "é"]
    corpus = encode_documents([Document(t, t, Path(t[:1])) for t in texts], ByteTokenizer())
    nats = 0.0
    for text in texts:
        ids = torch.tensor([[256, *text.encode(), 256]])
        nats += F.cross_entropy(model(ids[:, :-1])[0], ids[0, 1:], reduction="sum").item()
    expected = nats / sum(len(t.encode()) for t in texts) / math.log(2)
    for batch_size, chunk in [(1, 7), (3, 10), (8, 1000), (2, 1)]:
        found = evaluate_corpus(model, corpus, batch_size=batch_size, chunk=chunk)
        assert found.bits_per_byte == pytest.approx(expected, abs=1e-5)  # logits are taken in float32
        assert (found.n_bytes, found.n_tokens, found.n_documents) == (corpus.n_bytes, corpus.n_targets, 4)
    forgetful = evaluate_corpus(model, corpus, chunk=7, reset_every_chunk=True).bits_per_byte
    assert abs(forgetful - expected) > 1e-4
    assert model.training
    for wrong in ({"batch_size": 0}, {"chunk": 0}):
        with pytest.raises(ValueError, match="batch_size and chunk must be at least 1"):
            evaluate_corpus(model, corpus, **wrong)


def test_evaluation_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text")
    save_pretrained(MODEL(), tmp_path / "model")
    with pytest.raises(ValueError, match="has no tokenizer"):
        evaluate(str(tmp_path / "model"), str(tmp_path / "a.txt"))
    found = evaluate(str(tmp_path / "model"), str(tmp_path), include="*.txt", tokenizer="bytes")
    assert found.n_bytes == 9
    assert "bits per byte over 9 bytes in 1 documents" in str(found)


def test_every_parameter_is_in_one_group() -> None:
    model = MODEL()
    optimizer = make_optimizer(model, 1e-3, (0.9, 0.95), 0.1)
    params = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(params) == sorted(id(p) for p in model.parameters())
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] > 0 for p in group["params"]}
    names = {n for n, p in model.named_parameters() if id(p) in decayed}
    assert "backbone.layers.0.mixer.in_proj.weight" in names
    assert not names & {f"backbone.layers.0.mixer.{n}" for n in ("A_log", "D", "dt_bias")}
    set_rate(optimizer, 0.5)
    set_rate(optimizer, 0.25)
    assert {group["lr"] for group in optimizer.param_groups} == {2.5e-4}
