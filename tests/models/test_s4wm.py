"""The world model: parallel equals stepped, imagination fed what was seen is teacher forcing, and what its loss moves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Normal, kl_divergence

from statescan import Spec, Timeline
from statescan.heads.world import CategoricalLatent, GaussianLatent, Latent, balanced_divergence
from statescan.layers.mlp import MLP
from statescan.mixers import S4, S5
from statescan.models.s4wm import WorldModel, WorldOutput

LATENTS = [Spec(CategoricalLatent, groups=3, classes=4), Spec(GaussianLatent, size=5)]
MIXERS = [Spec(S4, d_state=4), Spec(S5, d_state=4)]


def _model(latent: Spec[Latent], mixer: Spec[object] = MIXERS[0]) -> WorldModel:
    torch.manual_seed(0)
    parts = {"S": mixer, "F": Spec(MLP, d_ff=8, activation="gelu", bias=True)}
    return WorldModel(8, (4, 4), 1, 2, latent, "SSF", parts, widths=(4, 4), groups=2).double().eval()  # type: ignore[arg-type]


def _episode(length: int = 6) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(2, length, 4, 4, 1, dtype=torch.float64), torch.randn(2, length - 1, 2, dtype=torch.float64)


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("latent", LATENTS)
def test_parallel_equals_stepped_and_imagination_of_what_was_seen(latent: Spec[Latent], mixer: Spec[object]) -> None:
    model, (frames, actions) = _model(latent, mixer), _episode()
    output = model(frames, actions)
    state, hs = model.backbone.init_state(2), []
    for t in range(5):
        h, state = model.advance(output.z[:, t], actions[:, t], state)
        hs.append(h)
    torch.testing.assert_close(torch.stack(hs, 1), output.h, atol=1e-9, rtol=0)
    for context in (1, 3, 5):
        h, decoded = model.imagine(frames[:, :context], actions, latents=output.z)
        torch.testing.assert_close(h, output.h[:, context - 1 :], atol=1e-9, rtol=0)
        torch.testing.assert_close(decoded, output.frames[:, context - 1 :], atol=1e-8, rtol=0)


@pytest.mark.parametrize("latent", LATENTS)
def test_imagination_reads_nothing_behind_its_context_and_repeats_by_seed(latent: Spec[Latent]) -> None:
    model, (frames, actions) = _model(latent), _episode()
    runs = [model.imagine(frames[:, :2], actions, generator=torch.Generator().manual_seed(seed))[1] for seed in (0, 0, 1)]
    assert runs[0].shape == (2, 4, 4, 4, 1)
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize("latent", LATENTS)
def test_divergences_are_those_of_the_distributions(latent: Spec[Latent]) -> None:
    kind = latent()
    q, p = torch.randn(2, 3, 4, kind.features, dtype=torch.float64)
    if isinstance(kind, CategoricalLatent):
        expected = kl_divergence(*(Categorical(probs=kind.probabilities(raw)) for raw in (q, p)))
        assert kind.probabilities(100 * q).min() >= 0.01 / 4
    else:
        expected = kl_divergence(*(Normal(*kind.moments(raw)) for raw in (q, p)))
    torch.testing.assert_close(kind.divergence(q, p), expected.sum(-1))


@pytest.mark.parametrize("latent", LATENTS)
def test_alpha_splits_the_gradient_between_prior_and_posterior(latent: Spec[Latent]) -> None:
    kind = latent()
    torch.manual_seed(0)
    q, p = (4 * torch.randn(6, kind.features, dtype=torch.float64).requires_grad_() for _ in range(2))
    whole = torch.autograd.grad(kind.divergence(q, p).sum(), (q, p))
    for alpha in (0.0, 0.8, 1.0):
        of_q, of_p = torch.autograd.grad(balanced_divergence(kind, q, p, alpha, free=0.0).sum(), (q, p))
        torch.testing.assert_close(of_q, (1 - alpha) * whole[0])
        torch.testing.assert_close(of_p, alpha * whole[1])


@pytest.mark.parametrize("latent", LATENTS)
def test_free_nats_move_nothing(latent: Spec[Latent]) -> None:
    kind = latent()
    q = (0.05 * torch.randn(6, kind.features, dtype=torch.float64)).requires_grad_()
    p = (q.detach() + 0.05).requires_grad_()
    assert (kind.divergence(q, p) < 1).all()
    value = balanced_divergence(kind, q, p)
    assert torch.equal(value, torch.ones_like(value))
    assert all(not grad.any() for grad in torch.autograd.grad(value.sum(), (q, p)))


def test_one_hot_samples_have_the_gradient_of_the_probabilities() -> None:
    kind = CategoricalLatent(3, 4)
    raw = torch.randn(5, 12, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 12, dtype=torch.float64)
    sample = kind.sample(raw)
    rows = sample.unflatten(-1, (3, 4))
    torch.testing.assert_close(rows.sum(-1), torch.ones(5, 3, dtype=torch.float64))
    torch.testing.assert_close(rows.amax(-1), torch.ones(5, 3, dtype=torch.float64))
    (through,) = torch.autograd.grad((weight * sample).sum(), raw)
    (direct,) = torch.autograd.grad((weight * kind.probabilities(raw).flatten(-2)).sum(), raw)
    torch.testing.assert_close(through, direct)


@pytest.mark.parametrize("latent", LATENTS)
def test_every_parameter_learns(latent: Spec[Latent]) -> None:
    model, (frames, actions) = _model(latent), _episode()
    model.free = 0.0
    model.loss(model(frames, actions), frames).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("mixer", MIXERS)
def test_episodes_in_a_row_are_episodes_apart(mixer: Spec[object]) -> None:
    model, (frames, actions) = _model(LATENTS[1], mixer), _episode(9)
    reset = torch.zeros(2, 9, dtype=torch.bool)
    reset[0, 4] = reset[1, 1] = True
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[0, 7:] = False
    line = Timeline(reset, mask)
    frames[0, 7:], actions[0, 7:] = torch.nan, torch.nan
    frames.requires_grad_()
    output = model(frames, actions, line, generator=torch.Generator().manual_seed(0))
    total, count = torch.zeros((), dtype=torch.float64), 0
    for row, start, stop in ((0, 0, 4), (0, 4, 7), (1, 0, 1), (1, 1, 9)):
        if stop - start == 1:
            continue  # nothing follows this frame
        z, there = output.z[row : row + 1, start:stop], slice(start, stop - 1)
        h = model.backbone(model.g(torch.cat([z[:, :-1], actions[row : row + 1, there]], -1)))
        torch.testing.assert_close(output.h[row : row + 1, there], h, atol=1e-9, rtol=0)
        alone = WorldOutput(h, z, output.posterior[row : row + 1, there], model.prior(h), model.decode(h, z[:, 1:]))
        total = total + model.loss(alone, frames[row : row + 1, start:stop]) * (stop - start - 1)
        count += stop - start - 1
    loss = model.loss(output, frames, line)
    torch.testing.assert_close(loss, total / count, atol=1e-9, rtol=0)
    (gradient,) = torch.autograd.grad(output.h[0, 4:6].sum(), frames, retain_graph=True)
    assert gradient[0, 4:6].any()
    assert not gradient[0, :4].any()
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    # imagination from the second episode knows nothing of the first
    given = torch.randn(2, 3, model.latent.width, dtype=torch.float64)
    begun = Timeline(torch.tensor([[False, False, True, False]]).expand(2, -1))
    with_history, fresh = frames.detach()[:, :4], frames.detach()[:, 2:4]
    steps = torch.randn(2, 6, 2, dtype=torch.float64)
    z = torch.cat([output.z[:, :4], given], 1).detach()
    torch.testing.assert_close(
        model.imagine(with_history, steps, begun, latents=z)[1], model.imagine(fresh, steps[:, 2:], latents=z[:, 2:])[1], atol=1e-8, rtol=0
    )
    with pytest.raises(ValueError, match="pad in front"):
        model.imagine(frames.detach(), torch.zeros(2, 10, 2, dtype=torch.float64), line)


def test_wrong_inputs_are_clear_errors() -> None:
    model, (frames, actions) = _model(LATENTS[0]), _episode()
    with pytest.raises(ValueError, match="actions must have shape"):
        model(frames, torch.cat([actions, actions[:, :1]], 1))
    with pytest.raises(ValueError, match="an action for every step"):
        model.imagine(frames, actions)
    with pytest.raises(ValueError, match="multiples of 8"):
        WorldModel(size=(20, 64))


COLOURS = 4 * torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [1.0, 1.0, 0]])
BLANK, SHOWN = 64, 4


def _recall(rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """A colour, blank frames, and the colour again for a few frames, which an action calls up."""
    colour = torch.randint(0, len(COLOURS), (rows,), generator=generator)
    frames, actions = torch.zeros(rows, 1 + BLANK + SHOWN, 1, 1, 3), torch.zeros(rows, BLANK + SHOWN, 1)
    frames[:, 0] = COLOURS[colour, None, None]
    frames[:, -SHOWN:] = COLOURS[colour, None, None, None]
    actions[:, BLANK:] = 1
    return frames, actions, colour


def _recalled(layers: str, steps: int) -> float:
    """The share of held-out rows in which imagination, after the blank frames, shows the colour of the first."""
    torch.manual_seed(0)
    parts = {"S": Spec(S4, d_state=64), "F": Spec(MLP, d_ff=32, activation="gelu", bias=True)}
    latent = Spec(GaussianLatent, size=4)
    model = WorldModel(32, (1, 1), 3, 1, latent, layers, parts, widths=(8,), groups=2, beta=0.4, free=0.0)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(model.parameter_groups(lr=1e-2))
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, 2.5 * (1 - step / steps)))
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        frames, actions, _ = _recall(16, generator)
        loss = model.loss(model(frames, actions, generator=generator), frames)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rates.step()
    frames, actions, colour = _recall(256, torch.Generator().manual_seed(99))
    dreamt = model.eval().imagine(frames[:, :-SHOWN], actions, generator=torch.Generator().manual_seed(1))[1]
    found = (dreamt[:, 0].mean((1, 2)).unsqueeze(1) - COLOURS).square().sum(-1).argmin(1)
    return float((found == colour).float().mean())


@pytest.mark.full
def test_a_colour_is_recalled_after_64_blank_frames_and_not_without_memory() -> None:
    assert _recalled("SF", 450) > 0.8
    assert _recalled("F", 450) < 0.4
