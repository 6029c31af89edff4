"""Tasks on signals and episodes: what is asked for, against oracles; how rows are scored; one comparison of each kind."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from statescan.data.tasks import SIGNALS, Autoregression, DelaySignal, FourierNoise, RepeatFirst
from statescan.data.tasks.signals import SignalModel, Signals
from statescan.dynamics import nplr, ptd
from statescan.procedures.compare import compare
from statescan.spec import Spec


class Oracle(torch.nn.Module):
    """x_{t+1} = phi . (x_t, x_{t-1}, ...), with the state that it needs."""

    def __init__(self, phi: list[float]) -> None:
        super().__init__()
        self.phi = torch.tensor(phi)

    def scan(self, x):
        padded = torch.nn.functional.pad(x, (len(self.phi) - 1, 0)).unfold(1, len(self.phi), 1)
        return (padded.flip(-1) * self.phi).sum(-1), x[:, -len(self.phi) :]

    def step(self, x, state):
        state = torch.cat([state[:, 1:], x.unsqueeze(1)], 1)
        return (state.flip(-1) * self.phi).sum(-1), state

    def forward(self, x):
        return self.scan(x)[0]


@pytest.mark.parametrize("cls", SIGNALS)
def test_rows_repeat_by_seed_and_every_test_asks(cls):
    task = cls()
    assert Spec.from_dict(Spec(cls).to_dict())() == task
    for test in task.tests().values():
        one, again, other = test.sample(4, 1, 2), test.sample(4, 1, 2), test.sample(4, 1, 3)
        assert torch.equal(one.ids, again.ids)
        assert not torch.equal(one.ids, other.ids)
        assert one.ids.dtype == torch.float32
        assert one.ids.shape == one.targets.shape
        assert not one.ids.isnan().any()
        assert (~one.targets.isnan()).any(1).all()


def test_a_delay_asks_for_what_came_before():
    found = DelaySignal(length=40, delay=7).sample(3, 0)
    assert torch.equal(found.targets[:, 7:], found.ids[:, :-7])
    assert found.targets[:, :7].isnan().all()
    spectrum = np.abs(np.fft.rfft(found.ids.double().numpy()))
    assert spectrum[:, 6:].max() < 1e-5 * spectrum.max()  # a quarter of the Nyquist frequency


def test_an_autoregression_is_solved_by_its_coefficients_and_by_nothing_shorter():
    task = Autoregression(order=4, length=20, horizon=30)
    p, q = 2 * np.cos(0.35), 2 * np.cos(0.9)
    right = Oracle([p + q, -2 - p * q, p + q, -1.0]).double()
    for test in task.tests().values():
        rows = test.sample(16, 5)
        rows = rows._replace(ids=rows.ids.double(), targets=rows.targets.double())
        explained, energy = rows.score(right)
        assert explained / energy > 0.999
        explained, energy = rows.score(Oracle([p, -1.0]).double())
        assert explained / energy < 0.9
    ahead = task.tests()["30 values ahead"].sample(2, 0)
    assert ahead.ids.shape == (2, 50)
    assert ahead.targets[:, :19].isnan().all()
    assert not ahead.targets[:, 19:].isnan().any()


def test_a_forecast_is_fed_with_itself():
    """What stands in the inputs of the horizon changes nothing."""
    rows = Autoregression(length=20, horizon=9).tests()["9 values ahead"].sample(4, 1)
    other = rows._replace(ids=torch.cat([rows.ids[:, :20], torch.full((4, 9), 50.0)], 1))
    torch.manual_seed(0)
    model = SignalModel(8, "S", {"S": Spec("S4D", d_state=4)}).eval()
    with torch.no_grad():
        assert rows.score(model) == other.score(model)


def test_oscillations_are_in_the_inputs_of_one_test_only():
    task = FourierNoise(length=200)
    clean, noisy = (test.sample(3, 4) for test in task.tests().values())
    assert torch.equal(clean.targets.nan_to_num(), noisy.targets.nan_to_num())
    difference = (noisy.ids - clean.ids).double().numpy()
    power = np.abs(np.fft.rfft(difference * np.hanning(200), n=4096)) ** 2
    peaks = 2 * np.pi * np.argsort(power.mean(0))[-1] / 4096
    assert min(abs(peaks - f) for f in task.frequencies) < 0.03
    assert abs(difference.std() - task.size * np.sqrt(len(task.frequencies) / 2)) < 0.1


def test_the_score_is_the_explained_energy_and_never_negative():
    targets = torch.tensor([[float("nan"), 2.0, -2.0]])
    rows = Signals(torch.zeros(1, 3), targets)

    class Says(torch.nn.Module):
        def __init__(self, value):
            super().__init__()
            self.value = value

        def scan(self, x):
            return torch.full_like(x, self.value), None

    assert rows.score(Says(0.0)) == (0.0, 8.0)
    assert rows.score(Says(1e3))[0] == 0.0
    assert rows.score(Says(float("nan")))[0] == 0.0


def test_the_first_of_each_episode_is_asked_for():
    task = RepeatFirst(length=50, least=3, most=9)
    rows = task.sample(6, 2)
    reset, ids, targets = rows.timeline.reset.numpy(), rows.ids.numpy(), rows.targets.numpy()
    assert reset[:, 0].all()
    for row in range(6):
        starts = np.flatnonzero(reset[row])
        assert set(np.diff(starts)) <= set(range(3, 10))
        for start, stop in zip(starts, [*starts[1:], 50], strict=True):
            assert (targets[row, start:stop] == ids[row, start]).all()
    untold = RepeatFirst(length=50, least=3, most=9, resets=False).sample(6, 2)
    assert untold.timeline is None
    assert torch.equal(untold.ids, rows.ids)


@pytest.mark.parametrize("task", [Spec(Autoregression, length=12, horizon=5), Spec(RepeatFirst, length=12, most=6)])
def test_a_comparison_runs(task: Spec, tmp_path: Path):
    mixers = [{"name": "Companion", "d_state": 4}, {"name": "S4D", "d_state": 4}]
    found = compare(task, mixers, str(tmp_path), d_model=8, layers=1, seeds=1, steps=3, batch_size=4, test_rows=6, eval_every=2, quiet=True)
    assert len(found.scores) == 2
    assert all(0 <= value <= 1 for score in found.scores for value in score.accuracy.values())
    assert (tmp_path / "table.md").is_file()


def test_oscillations_show_what_dropping_the_low_rank_term_does() -> None:
    """LegS's first state, an exponential average, from the diagonal systems of S4D and of PTD: both are right on a smooth signal."""
    rows, step, long = 2048, 0.002, torch.arange(2048, dtype=torch.float64)

    def kernel(modes: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        gain = 2 * c * b * torch.expm1(step * modes) / modes
        return (gain.unsqueeze(1) * (step * modes.unsqueeze(1) * long).exp()).sum(0).real

    legs, perturbed = nplr("legs", 64), ptd(64)
    kernels = kernel(legs.Lambda, legs.B / 2, legs.V[0]), kernel(perturbed.Lambda, perturbed.B, perturbed.V[0])
    exact = -math.expm1(-step) * torch.exp(-step * long)

    def error(kernel: torch.Tensor, noise: bool) -> float:
        x = FourierNoise(length=rows, cutoff=0.01, noise=noise).sample(8, 0).ids.double()
        wrong, right = (
            torch.fft.irfft(torch.fft.rfft(x, 2 * rows) * torch.fft.rfft(k, 2 * rows))[:, :rows] for k in (kernel - exact, exact)
        )
        return float(wrong.square().sum() / right.square().sum())

    assert max(error(k, noise=False) for k in kernels) < 0.02
    assert error(kernels[1], noise=True) < 0.02
    assert error(kernels[0], noise=True) > 0.08
