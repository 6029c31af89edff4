"""Self-pretraining: what is hidden stays hidden, only what is hidden counts, and what a transfer takes over."""

from __future__ import annotations

import pytest
import torch

from statescan import Spec
from statescan.heads import SequenceClassifier
from statescan.layers import MLP
from statescan.procedures.pretrain import Denoiser, Denoising, pretrain, transfer

PARTS = {"S": Spec("S4D", d_state=4)}
MODEL = {"d_model": 8, "d_input": 2, "layers": "S*2", "parts": PARTS}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(length: int = 20) -> torch.Tensor:
    return torch.randn(3, length, 2, generator=seeded())


def test_hidden_values_do_not_leak() -> None:
    objective, x = Denoising(p=0.5), rows()
    noisy = objective(x, seeded(1))
    assert noisy.inputs.shape == (3, 20, 3)
    assert torch.equal(noisy.inputs[..., 2].bool(), noisy.asked)
    other = objective(torch.where(noisy.asked.unsqueeze(-1), torch.nan, x), seeded(1))
    assert torch.equal(other.inputs, noisy.inputs)
    assert torch.equal(noisy.inputs[~noisy.asked][:, :2], x[~noisy.asked])


def test_only_hidden_positions_count() -> None:
    torch.manual_seed(0)
    model = Denoiser(**MODEL)
    noisy = Denoising()(rows(), seeded(1))
    y = model(noisy.inputs)
    elsewhere = torch.where(noisy.asked.unsqueeze(-1), y, y + 100)
    assert torch.equal(model.loss(elsewhere, noisy), model.loss(y, noisy))
    targets = torch.where(noisy.asked.unsqueeze(-1), noisy.targets, torch.nan)
    assert torch.equal(model.loss(y, noisy._replace(targets=targets)), model.loss(y, noisy))
    assert torch.isclose(model.loss(y, noisy), (y - rows())[noisy.asked].abs().mean())


@pytest.mark.parametrize(("p", "span"), [(0.5, 1), (0.3, 1), (0.5, 5)])
def test_the_share_hidden_is_p(p: float, span: int) -> None:
    hidden = Denoising(p=p, span=span).hidden(200, 400, seeded())
    assert abs(float(hidden.float().mean()) - p) < 0.02
    runs = hidden.int().diff(dim=1, prepend=torch.zeros(200, 1, dtype=torch.int)).eq(1).sum()
    assert hidden.sum() / runs > 0.9 * span


def test_the_causal_objective_asks_for_the_next_position() -> None:
    torch.manual_seed(0)
    noisy = Denoising("causal")(rows())
    assert torch.equal(noisy.inputs, rows())
    assert torch.equal(noisy.targets[:, :-1], rows()[:, 1:])
    assert noisy.asked[:, :-1].all()
    assert not noisy.asked[:, -1].any()
    model = Denoiser(**MODEL, masked=False)
    y = model(noisy.inputs)
    wrong = y.clone()
    wrong[:, -1] = 1e6
    assert torch.equal(model.loss(wrong, noisy), model.loss(y, noisy))


def test_ids_and_levels_are_classified() -> None:
    torch.manual_seed(0)
    ids = torch.randint(0, 7, (3, 20), generator=seeded())
    noisy = Denoising(mask_id=7)(ids, seeded(1))
    assert (noisy.inputs[noisy.asked] == 7).all()
    model = Denoiser(8, 8, "S", PARTS, levels=7, ids=True)
    y = model(noisy.inputs)
    expected = -y.log_softmax(-1).gather(2, ids.unsqueeze(2)).squeeze(2)[noisy.asked].mean()
    assert torch.isclose(model.loss(y, noisy), expected)
    with pytest.raises(ValueError, match="mask_id"):
        Denoising()(ids)
    with pytest.raises(ValueError, match="levels must be positive"):
        Denoiser(8, 8, "S", PARTS, ids=True)


def test_a_transfer_cuts_the_mask_column_and_names_what_it_leaves() -> None:
    torch.manual_seed(0)
    source, target = Denoiser(**MODEL), SequenceClassifier(num_classes=4, **MODEL)
    done = transfer(source, target)
    assert done.cut == ("encoder.weight",)
    assert done.dropped == done.fresh == ("decoder.weight", "decoder.bias")
    assert set(done.loaded) | set(done.cut) | set(done.fresh) == set(target.state_dict())
    x = rows()
    nothing_hidden = torch.cat([x, torch.zeros(3, 20, 1)], -1)
    features = source.backbone(source.encoder(nothing_hidden))
    assert torch.allclose(target.backbone(target.encoder(x)), features, atol=1e-6)
    causal = Denoiser(**MODEL, masked=False)
    assert transfer(causal, target).cut == ()
    with pytest.raises(ValueError, match="has no pretrained weight"):
        transfer(source, SequenceClassifier(num_classes=4, **(MODEL | {"layers": "S*3"})))
    with pytest.raises(ValueError, match="which the new one has not"):
        transfer(source, SequenceClassifier(num_classes=4, **(MODEL | {"layers": "S"})))
    with pytest.raises(ValueError, match="shape"):
        transfer(source, SequenceClassifier(num_classes=4, **(MODEL | {"d_input": 5})))


def test_a_transfer_cuts_the_mask_id() -> None:
    torch.manual_seed(0)
    model = SequenceClassifier(num_classes=3, **(MODEL | {"d_input": 5}), encoder="embedding")
    source = Denoiser(**(MODEL | {"d_input": 6}), levels=5, ids=True)
    assert transfer(source, model).cut == ("encoder.weight",)
    assert torch.equal(model.encoder.weight, source.encoder.weight[:5])


def test_pretraining_learns_and_keeps_the_best() -> None:
    """A sine of random phase: its hidden values follow from the others."""
    torch.manual_seed(0)
    t = torch.arange(24)
    waves = torch.sin(0.7 * t + 6.28 * torch.rand(72, 1)).unsqueeze(-1)
    model = Denoiser(16, 1, "S*2", PARTS)
    curve = pretrain(model, waves[:64], waves[64:], Denoising(p=0.25), steps=60, lr=1e-2, eval_every=20)
    assert [step for step, _ in curve] == [20, 40, 60]
    assert curve[-1][1] < 0.6 * 0.64  # the mean absolute value of a sine is 2 / pi
    noisy = Denoising(p=0.25)(waves[64:], seeded(1))
    model.eval()
    with torch.no_grad():
        found = float(model.loss(model(noisy.inputs), noisy))
    assert abs(found - min(value for _, value in curve)) < 1e-6


@pytest.mark.full
def test_a_transformer_pretrained_on_its_rows_beats_one_from_scratch_at_equal_steps() -> None:
    """A row of 128 symbols is one of 64, twice; the question is its first symbol, which also comes 64 positions behind the middle: next.

    Denoising asks for such a copy 64 times a row, the task once, and there are 512 rows.
    """
    symbols, steps, tuning = 32, 325, 75
    parts = {"A": Spec("Attention", num_heads=4), "F": Spec(MLP, d_ff=64, activation="gelu")}
    model = {"d_model": 32, "d_input": symbols, "layers": "AFAF", "parts": parts}
    (x, y), (other, expected) = (
        (half.repeat(1, 2), half[:, 0]) for half in (torch.randint(0, symbols, (512, 64), generator=seeded(seed)) for seed in (0, 1))
    )

    def tuned(classifier: SequenceClassifier, steps: int) -> float:
        generator = seeded()
        optimizer = torch.optim.AdamW(classifier.parameter_groups(lr=3e-3))
        rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, 10 * (step + 1) / steps))
        for _ in range(steps):
            chosen = torch.randint(len(x), (32,), generator=generator)
            loss = classifier.loss(classifier(x[chosen]), y[chosen])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(classifier.parameters(), 1.0)
            optimizer.step()
            rates.step()
        with torch.no_grad():
            return float((classifier.eval()(other).argmax(-1) == expected).float().mean())

    def fresh() -> SequenceClassifier:
        torch.manual_seed(10)
        return SequenceClassifier(num_classes=symbols, encoder="embedding", pool="last", **model)

    torch.manual_seed(0)
    source, begun = Denoiser(levels=symbols, ids=True, masked=False, **model), fresh()
    pretrain(source, x, other[:64], Denoising("causal"), steps=steps - tuning, lr=3e-3, eval_every=125)
    transfer(source, begun)
    assert tuned(begun, tuning) > 0.8
    assert tuned(fresh(), steps) < 0.4
