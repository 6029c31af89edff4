"""S-Mamba: its one symmetry, the instance norm, and the task across variates that a model of single variates cannot do."""

from __future__ import annotations

import torch
from torch import Tensor

from statescan.estimators.floors import Ridge
from statescan.models.s_mamba import SMamba
from statescan.procedures.fit import Schedule, fit


def _small(**changes: object) -> SMamba:
    torch.manual_seed(0)
    return SMamba(**{"length": 12, "horizon": 5, "d_model": 16, "d_state": 4, "n_layers": 2, "dropout": 0.0, **changes})  # type: ignore[arg-type]


def test_no_parameter_depends_on_the_number_of_variates_and_marks_stand_behind() -> None:
    model = _small().double()
    x = torch.randn(2, 12, 7, dtype=torch.float64)
    assert model(x[:, :, :3]).shape == (2, 5, 3)
    with_marks = model(x[:, :, :3], torch.randn(2, 12, 4))
    assert with_marks.shape == (2, 5, 3)
    assert not torch.allclose(with_marks, model(x[:, :, :3]))


def test_reversed_variates_with_directions_exchanged_give_reversed_forecasts() -> None:
    model = _small().double()
    x = torch.randn(2, 12, 5, dtype=torch.float64)
    forecast = model(x)
    assert not torch.allclose(model(x.flip(2)).flip(2), forecast)  # the order of the variates matters otherwise
    for layer in model.layers:
        layer.mixer.ahead, layer.mixer.behind = layer.mixer.behind, layer.mixer.ahead
    torch.testing.assert_close(model(x.flip(2)).flip(2), forecast)


def test_shifting_and_scaling_one_variate_does_so_to_its_own_forecast_alone() -> None:
    model = _small().double()
    x = torch.randn(2, 12, 3, dtype=torch.float64)
    changed = x.clone()
    changed[:, :, 1] = 4 * x[:, :, 1] - 7
    forecast, other = model(x), model(changed)
    torch.testing.assert_close(other[:, :, 1], 4 * forecast[:, :, 1] - 7, atol=1e-4, rtol=0)
    torch.testing.assert_close(other[:, :, ::2], forecast[:, :, ::2], atol=1e-4, rtol=0)


def _follower(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Four variates of noise, of which the last is the second, one step later; each at a level of its own, by which it is known: (past
    (rows, 12, 4), next value (rows, 1, 4))."""
    x = torch.randn(rows, 13, 4, generator=torch.Generator().manual_seed(seed))
    x[:, 1:, 3] = x[:, :-1, 1]
    x = x + torch.tensor([-3.0, -1.0, 1.0, 3.0])
    return x[:, :12], x[:, 12:]


def test_a_variate_that_follows_another_is_forecast_by_looking_across() -> None:
    model = _small(horizon=1, n_layers=1, instance_norm=False)
    past, ahead = _follower(2000, 1)
    test_past, test_ahead = _follower(500, 2)

    def loss_of(step: int) -> Tensor:
        x, y = past[step * 64 % 1920 :][:64], ahead[step * 64 % 1920 :][:64]
        y = torch.where(torch.arange(4) == 3, y, torch.nan)
        return model.loss(x, y)

    fit(model, loss_of, None, Schedule(steps=200, lr=1e-2, warmup=20, weight_decay=0.0, eval_every=200), quiet=True)
    with torch.no_grad():
        error = float((model.eval()(test_past)[:, 0, 3] - test_ahead[:, 0, 3]).square().mean())
    ridge = Ridge(past[:, :, 3].double().numpy(), ahead[:, :, 3].double().numpy())
    alone = float(((ridge(test_past[:, :, 3].double().numpy()) - test_ahead[:, :, 3].double().numpy()) ** 2).mean())
    assert 3 * error < alone
